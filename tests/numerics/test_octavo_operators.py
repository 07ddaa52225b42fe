"""The ``octavo::`` operators against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from octavo.graph import operators
from octavo.numerics.octavo_operators import (
    attention,
    dequantize,
    fake_quantize_dynamic,
    pack_int4,
    quantize,
    unpack_int4,
)

OCTAVO = torch.ops.octavo
RANGES = [(0, 255, torch.uint8), (0, 127, torch.uint8), (-128, 127, torch.int8)]


def numpy_quantize(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int
) -> np.ndarray:
    return np.clip(np.rint(x / scale.astype(np.float32)) + zero_point, low, high)


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
    sizes = [1] * 4
    sizes[axis] = x.shape[axis]
    scale = torch.rand(sizes) * 0.05 + 0.005
    zero_point = torch.randint(0, 60, sizes, dtype=torch.int32)
    q = quantize(x, scale, zero_point, low, high, dtype)
    s, z = scale.numpy(), zero_point.numpy()
    assert q.dtype == dtype
    assert np.array_equal(q.numpy(), numpy_quantize(x.numpy(), s, z, low, high))
    back = OCTAVO.dequantize(q, scale, zero_point)
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
    scale = torch.empty(1, 3, 2, device="meta")
    zero_point = torch.empty(1, 3, 2, dtype=torch.int32, device="meta")
    results = [
        (OCTAVO.quantize(x, 0.1, 3, 0, 255, torch.uint8), torch.uint8),
        (OCTAVO.dequantize(x.to(torch.uint8), 0.1, 3), torch.float32),
        (quantize(x, scale, zero_point, -127, 127, torch.int8), torch.int8),
        (OCTAVO.dequantize(x.to(torch.int8), scale, zero_point), torch.float32),
    ]
    for result, dtype in results:
        assert result.is_meta
        assert (result.shape, result.dtype) == (x.shape, dtype)


@pytest.mark.parametrize(
    ("name", "function", "args"),
    [
        ("quantize.default", quantize, (torch.randn(2, 3), 0.1, 3, 0, 255, torch.uint8)),
        ("dequantize.default", dequantize, (torch.ones(2, 3, dtype=torch.uint8), 0.1, 3)),
        (
            "dequantize.Tensor",
            dequantize,
            (torch.ones(2, 4, dtype=torch.int8), torch.rand(2, 2), torch.zeros(2, 2).int()),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_registered_as_torch_wants_it(name: str, function: Any, args: tuple) -> None:
    packet, overload_name = name.split(".")
    overload = getattr(getattr(OCTAVO, packet), overload_name)
    torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))
    assert operators.resolve(f"octavo.{name}") is overload
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
        (torch.ones(1, 2), torch.zeros(1, 3).int()),
        (torch.ones(1, 3), torch.zeros(1, 1).int()),
        (torch.ones(3), torch.zeros(3).int()),
        (torch.ones(3, 1), torch.zeros(3, 1).int()),
        (torch.ones(4, 4), torch.zeros(4, 4).int()),
        (torch.ones(1, 0), torch.zeros(1, 0).int()),
        (torch.ones(()), torch.zeros(()).int()),
        (torch.ones(1, 3).double(), torch.zeros(1, 3).int()),
        (torch.ones(1, 3), torch.zeros(1, 3)),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_scales_must_fit(scale: Tensor, zero_point: Tensor, device: str) -> None:
    x, scale, zero_point = (t.to(device) for t in (torch.ones(4, 3), scale, zero_point))
    with pytest.raises(ValueError, match=r"of shape \[4, 3\]; expected float32 and int32"):
        quantize(x, scale, zero_point, 0, 255, torch.uint8)
    with pytest.raises(ValueError, match=r"of shape \[4, 3\]; expected float32 and int32"):
        OCTAVO.dequantize.Tensor(x.to(torch.uint8), scale, zero_point)


@pytest.mark.parametrize("sizes", [(3, 4), (1, 4), (3, 1), (1, 1), (3, 12), (1, 12)], ids=str)
def test_each_value_has_the_scale_of_its_group(sizes: tuple[int, int]) -> None:
    x = torch.randn(3, 12)
    scale, zero_point = torch.rand(sizes) + 0.1, torch.randint(0, 9, sizes, dtype=torch.int32)
    q = quantize(x, scale, zero_point, 0, 15, torch.uint8)
    s, z = (
        np.repeat(np.repeat(v.numpy(), 3 // sizes[0], 0), 12 // sizes[1], 1)
        for v in (scale, zero_point)
    )
    assert np.array_equal(q.numpy(), numpy_quantize(x.numpy(), s, z, 0, 15))
    back = OCTAVO.dequantize(q, scale, zero_point)
    assert np.array_equal(back.numpy(), (q.numpy().astype(np.float32) - z.astype(np.float32)) * s)


def test_groups_along_any_axis() -> None:
    q = torch.arange(24, dtype=torch.int8).reshape(4, 3, 2)
    scale = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    back = OCTAVO.dequantize(q, scale, torch.zeros_like(scale, dtype=torch.int32))
    assert torch.equal(back[:2], q[:2].float())
    assert torch.equal(back[2:], 2 * q[2:].float())


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


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_of_many_values_each_becomes_what_it_becomes_alone(order: torch.memory_format) -> None:
    """They are taken in pieces, in the order in which they lie in memory."""
    x = torch.randn(3, 5, 80, 90).contiguous(memory_format=order)[1:]
    q = torch.ops.octavo.quantize(x, 0.02, 128, 0, 255, torch.uint8)
    rows = [
        torch.ops.octavo.quantize(row, 0.02, 128, 0, 255, torch.uint8) for row in x.flatten(0, 1)
    ]
    assert x.numel() > 2**16 > rows[0].numel()
    assert torch.equal(q.flatten(0, 1), torch.stack(rows))
    assert q.stride() == x.stride()
