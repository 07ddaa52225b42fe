"""The ``octavo::`` operators against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from octavo.graph import operators
from octavo.numerics.octavo_ops import (
    attention,
    dequantize,
    dequantize_channels,
    fake_quantize_dynamic,
    pack_int4,
    quantize,
    quantize_channels,
    unpack_int4,
)

OCTAVO = torch.ops.octavo
RANGES = [(0, 255, torch.uint8), (0, 127, torch.uint8), (-128, 127, torch.int8)]


def numpy_quantize(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int
) -> np.ndarray:
    return np.clip(np.rint(x / scale.astype(np.float32)) + zero_point, low, high)


def along(values: np.ndarray, dim: int, axis: int) -> np.ndarray:
    shape = [1] * dim
    shape[axis] = -1
    return values.reshape(shape)


@given(
    x=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    scale=st.floats(2**-8, 2.0, width=32),
    zero_point=st.integers(0, 100),
    integers=st.sampled_from(RANGES),
)
def test_per_tensor_as_numpy_does(
    x: list[float], scale: float, zero_point: int, integers: tuple[int, int, torch.dtype]
) -> None:
    low, high, dtype = integers
    array = np.array(x, np.float32)
    q = OCTAVO.quantize(torch.from_numpy(array), scale, zero_point, low, high, dtype)
    assert q.dtype == dtype
    expected = numpy_quantize(array, np.float32(scale), np.int32(zero_point), low, high)
    assert np.array_equal(q.numpy(), expected)
    back = OCTAVO.dequantize(q, scale, zero_point)
    assert back.dtype == torch.float32
    assert np.array_equal(
        back.numpy(), (q.numpy().astype(np.float32) - zero_point) * np.float32(scale)
    )


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
@pytest.mark.parametrize("integers", RANGES, ids=str)
def test_per_channel_as_numpy_does(axis: int, integers: tuple[int, int, torch.dtype]) -> None:
    low, high, dtype = integers
    x = torch.randn(4, 3, 2, 5)
    channels = x.shape[axis]
    scale = torch.rand(channels) * 0.05 + 0.005
    zero_point = torch.randint(0, 60, (channels,), dtype=torch.int32)
    q = OCTAVO.quantize_channels(x, scale, zero_point, axis, low, high, dtype)
    s, z = along(scale.numpy(), 4, axis), along(zero_point.numpy(), 4, axis)
    assert q.dtype == dtype
    assert np.array_equal(q.numpy(), numpy_quantize(x.numpy(), s, z, low, high))
    back = OCTAVO.dequantize_channels(q, scale, zero_point, axis)
    assert back.dtype == torch.float32
    z = z.astype(np.float32)
    assert np.array_equal(back.numpy(), (q.numpy().astype(np.float32) - z) * s)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(0, 3),
        torch.tensor(0.3),
        torch.randn(6)[::2],
    ],
    ids=["transposed", "channels last", "empty", "scalar", "strided"],
)
def test_any_layout(x: Tensor) -> None:
    q = OCTAVO.quantize(x, 0.02, 3, 0, 255, torch.uint8)
    expected = numpy_quantize(x.numpy(), np.float32(0.02), np.int32(3), 0, 255)
    assert q.shape == x.shape
    assert np.array_equal(q.numpy(), expected)
    assert OCTAVO.dequantize(q, 0.02, 3).shape == x.shape


def test_the_range_is_not_the_types() -> None:
    x = torch.linspace(-10, 10, 101)
    q = OCTAVO.quantize(x, 0.1, 64, 0, 127, torch.uint8)
    assert (q.min(), q.max()) == (0, 127)


def test_on_the_meta_device() -> None:
    x = torch.empty(2, 3, 4, device="meta")
    scale = torch.empty(3, device="meta")
    zero_point = torch.empty(3, dtype=torch.int32, device="meta")
    results = [
        (OCTAVO.quantize(x, 0.1, 3, 0, 255, torch.uint8), torch.uint8),
        (OCTAVO.dequantize(x.to(torch.uint8), 0.1, 3), torch.float32),
        (OCTAVO.quantize_channels(x, scale, zero_point, 1, -127, 127, torch.int8), torch.int8),
        (OCTAVO.dequantize_channels(x.to(torch.int8), scale, zero_point, 1), torch.float32),
    ]
    for result, dtype in results:
        assert result.is_meta
        assert (result.shape, result.dtype) == (x.shape, dtype)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (quantize, (torch.randn(2, 3), 0.1, 3, 0, 255, torch.uint8)),
        (dequantize, (torch.ones(2, 3, dtype=torch.uint8), 0.1, 3)),
        (
            quantize_channels,
            (torch.randn(2, 3), torch.rand(3), torch.zeros(3).int(), 1, -127, 127, torch.int8),
        ),
        (
            dequantize_channels,
            (torch.ones(2, 3, dtype=torch.int8), torch.rand(3), torch.zeros(3).int(), 1),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_registered_as_torch_wants_it(function: object, args: tuple) -> None:
    overload = getattr(OCTAVO, function.__name__).default
    torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))
    assert operators.resolve(f"octavo.{function.__name__}.default") is overload
    assert torch.equal(overload(*args), function(*args))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(RuntimeError):
        OCTAVO.quantize(torch.randn(3), 0.1, 3, 0, 255, "uint8")
    with pytest.raises(RuntimeError):
        OCTAVO.dequantize(torch.ones(3, dtype=torch.uint8), torch.ones(3), 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (torch.ones(2), torch.zeros(3).int()),
        (torch.ones(3), torch.zeros(1).int()),
        (torch.ones(3, 1), torch.zeros(3).int()),
        (torch.ones(()), torch.zeros(()).int()),
        (torch.ones(0), torch.zeros(0).int()),
        (torch.ones(3).double(), torch.zeros(3).int()),
        (torch.ones(3), torch.zeros(3)),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_scales_must_fit_the_axis(scale: Tensor, zero_point: Tensor, device: str) -> None:
    x, scale, zero_point = (t.to(device) for t in (torch.ones(4, 3), scale, zero_point))
    with pytest.raises(ValueError, match=r"for axis 1 of a tensor of shape \[4, 3\]; expected"):
        OCTAVO.quantize_channels(x, scale, zero_point, 1, 0, 255, torch.uint8)
    with pytest.raises(ValueError, match=r"expected torch\.(float32|int32)"):
        OCTAVO.dequantize_channels(x.to(torch.uint8), scale, zero_point, 1)


def test_groups_are_channels_of_a_finer_tensor() -> None:
    x = torch.randn(3, 12)
    scale, zero_point = torch.rand(3, 4) + 0.1, torch.randint(0, 9, (3, 4), dtype=torch.int32)
    q = OCTAVO.quantize_groups(x, scale, zero_point, 0, 15, torch.uint8)
    finer = quantize_channels(
        x.reshape(12, 3), scale.flatten(), zero_point.flatten(), 0, 0, 15, torch.uint8
    )
    assert torch.equal(q, finer.reshape(3, 12))
    back = dequantize_channels(finer, scale.flatten(), zero_point.flatten(), 0)
    assert torch.equal(OCTAVO.dequantize_groups(q, scale, zero_point), back.reshape(3, 12))


@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int32)),
        (torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.int32)),
        (torch.ones(3, 5), torch.zeros(3, 5, dtype=torch.int32)),
        (torch.ones(3, 4), torch.zeros(3, 2, dtype=torch.int32)),
        (torch.ones(3, 4), torch.zeros(3, 4)),
    ],
)
def test_groups_that_do_not_fit_are_refused(scale: Tensor, zero_point: Tensor) -> None:
    x = torch.randn(3, 12)
    for device in ("cpu", "meta"):
        args = [t.to(device) for t in (x, scale, zero_point)]
        with pytest.raises(ValueError, match=r"groups|differ"):
            OCTAVO.quantize_groups(*args, 0, 15, torch.uint8)
        with pytest.raises(ValueError, match=r"groups|differ"):
            OCTAVO.dequantize_groups(*args)


def test_four_bits_low_half_first() -> None:
    assert pack_int4(torch.tensor([1, 2, -1], dtype=torch.int8)).tolist() == [0x21, 0x0F]
    packed = torch.tensor([0x21, 0x0F], dtype=torch.uint8)
    assert unpack_int4(packed, [3], signed=True).tolist() == [1, 2, -1]
    assert unpack_int4(packed, [3], signed=False).tolist() == [1, 2, 15]


@given(values=st.lists(st.integers(-8, 7), min_size=1, max_size=40))
def test_packing_keeps_every_integer(values: list[int]) -> None:
    q = torch.tensor(values, dtype=torch.int8)
    packed = OCTAVO.pack_int4(q)
    assert len(packed) == (len(values) + 1) // 2
    assert torch.equal(OCTAVO.unpack_int4(packed, [len(values)], True), q)
    unsigned = (q + 8).to(torch.uint8)
    assert torch.equal(unpack_int4(pack_int4(unsigned), [len(values)], signed=False), unsigned)
    on_meta = OCTAVO.unpack_int4(packed.to("meta"), [len(values)], True)
    assert (on_meta.shape, on_meta.dtype) == (q.shape, q.dtype)


@pytest.mark.parametrize("shape", [[4], [7], [0], [-5], [2, 4]])
def test_a_packed_tensor_of_another_size_is_refused(shape: list[int]) -> None:
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match="does not hold"):
            OCTAVO.unpack_int4(torch.zeros(3, dtype=torch.uint8, device=device), shape, True)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("low", "high", "symmetric"), [(0, 127, False), (-127, 127, True)])
def test_a_dynamic_range_is_that_of_the_values(
    low: int, high: int, symmetric: bool, per_token: bool
) -> None:
    x = torch.randn(4, 50) * torch.tensor([[0.01], [1.0], [10.0], [0.0]])
    rounded = OCTAVO.fake_quantize_dynamic(x, low, high, symmetric, per_token)
    rows = x if per_token else x.reshape(1, -1)
    for row, got in zip(rows, rounded if per_token else rounded.reshape(1, -1), strict=True):
        width = 2 * row.abs().max() if symmetric else row.max() - row.min()
        assert (got - row).abs().max() <= width / (high - low) * 0.501 + 1e-6
    assert OCTAVO.fake_quantize_dynamic(x.to("meta"), low, high, symmetric, per_token).is_meta
    again = fake_quantize_dynamic(rounded, low, high, symmetric, per_token)
    assert torch.allclose(again, rounded, atol=1e-5)


@pytest.mark.parametrize(
    "settings", ["plain", "causal", "boolean mask", "float mask", "gqa", "scale"]
)
def test_attention_with_many_levels_is_attention(settings: str) -> None:
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    mask, causal, scale, gqa = None, False, None, False
    if settings == "causal":
        causal = True
    elif settings == "boolean mask":
        mask = torch.rand(6, 6) > 0.3
        mask[:, 0] = True
    elif settings == "float mask":
        mask = torch.randn(2, 1, 6, 6)
    elif settings == "gqa":
        k, v, gqa = k[:, :2], v[:, :2], True
    elif settings == "scale":
        scale = 0.1
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa
    )
    fine = OCTAVO.attention(q, k, v, mask, causal, scale, gqa, 2**20)
    assert torch.allclose(fine, expected, atol=1e-5)
    coarse = attention(q, k, v, mask, causal, scale, gqa, 255)
    assert torch.allclose(coarse, expected, atol=0.02)
    assert not torch.equal(coarse, fine)
    assert OCTAVO.attention(
        *(t.to("meta") for t in (q, k, v)), None, causal, scale, gqa, 255
    ).shape == (expected.shape)


def test_long_rows_keep_their_small_probabilities() -> None:
    q, k, v = torch.zeros(1, 1, 1, 8), torch.randn(1, 1, 4000, 8), torch.ones(1, 1, 4000, 8)
    assert torch.allclose(attention(q, k, v, None, False, None, False, 255), torch.ones(1, 1, 1, 8))
