"""Rules for shapes say what the operators make. `hostile_calls` holds them against many more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.graph import operators
from octavo.graph.soundness import schemas, shapes
from octavo.graph.soundness.shapes.common import broadcast

X = torch.randn(2, 3, 8, 8)
ROWS = torch.randn(4, 6)
IDS = torch.tensor([[0, 2], [1, 1]])
MASK = torch.tensor([True, False, True, True])

# Calls of every family; what they make is asked of the operator itself.
CALLS: list[tuple[Any, ...]] = [
    ("aten.relu.default", X),
    ("aten.add.Tensor", X, X[:1, :, :1]),
    ("aten.add.Tensor", IDS, 2.5),  # integers become floats
    ("aten.mul.Tensor", IDS.to(torch.int8), IDS),
    ("aten.div.Tensor", IDS, IDS + 1),
    ("aten.gt.Scalar", X, 0),
    ("aten.where.ScalarOther", X > 0, X, 0.0),
    ("aten.masked_fill.Scalar", X, X > 0, float("-inf")),
    ("aten.pow.Scalar", 2.0, ROWS),
    ("aten.prelu.default", X, torch.ones(3)),
    ("aten.softmax.int", X, 1),
    ("aten.softmax.int", X.half(), 1, torch.float32),
    ("aten.cumsum.default", IDS > 0, 1),
    ("aten.sort.default", ROWS, 1),
    ("aten.sum.default", IDS > 0),
    ("aten.sum.dim_IntList", X, [1, -1], True),
    ("aten.mean.dim", X, [2, 3]),
    ("aten.var_mean.correction", ROWS, [1]),
    ("aten.amax.default", X, [1]),
    ("aten.max.dim", X, 1),
    ("aten.max.other", X, X),
    ("aten.max.default", X),
    ("aten.any.dims", X > 0, []),  # over no axes at all
    ("aten.argmax.default", X),
    ("aten.argmax.default", X, 2, True),
    ("aten.linear.default", X, torch.ones(5, 8), torch.ones(5)),
    ("aten.linear.default", X, torch.ones(8)),
    ("aten.matmul.default", X, torch.ones(8, 5)),
    ("aten.matmul.default", torch.ones(8), X),
    ("aten.matmul.default", torch.ones(8), torch.ones(8)),
    ("aten.addmm.default", torch.ones(5), ROWS, torch.ones(6, 5)),
    ("aten.baddbmm.default", torch.ones(1), X[0], X[1]),
    ("aten.einsum.default", "bchw,bcwk->bhk", [X, X]),
    ("aten.einsum.default", "...w,...w", [X, X]),
    ("aten.einsum.default", "b...w->w...", [X]),
    ("aten.conv2d.default", X, torch.ones(6, 3, 3, 3), None, [2, 1], [1, 0], [1, 2]),
    ("aten.conv2d.default", X, torch.ones(6, 1, 3, 3), torch.ones(6), [1, 1], [0, 0], [1, 1], 3),
    ("aten.conv2d.default", X[0], torch.ones(6, 3, 3, 3)),
    ("aten.conv2d.padding", X, torch.ones(6, 3, 4, 3), None, [1, 1], "same"),
    ("aten.conv1d.default", X[0], torch.ones(6, 8, 3), None, [3], [2]),
    ("aten.conv_transpose2d.input", X, torch.ones(3, 4, 3, 2), None, [2, 3], [1, 0], [1, 2]),
    ("aten.convolution.default", X, torch.ones(3, 4, 3, 2), None, [2, 2], [1, 0], [1, 1], True,
     [1, 0], 1),
    ("aten.max_pool2d.default", X, [3, 2], [2, 2], [1, 1], [1, 2], True),
    ("aten.max_pool2d.default", X, [3, 3], [], [0, 0]),
    ("aten.max_pool2d_with_indices.default", X, [2, 2]),
    ("aten.avg_pool2d.default", X, [3, 3], [2, 2], [1, 1], True),
    ("aten.avg_pool1d.default", X[0], [3]),
    ("aten.adaptive_avg_pool2d.default", X, [3, 5]),
    ("aten.adaptive_max_pool2d.default", X, [3, 5]),
    ("aten.upsample_nearest2d.vec", X, None, [1.5, 0.7]),
    ("aten.upsample_bilinear2d.vec", X, [5, 9], True, None),
    ("aten.batch_norm.default", X, None, None, torch.ones(3), torch.ones(3), False, 0.1, 1e-5,
     False),
    ("aten.group_norm.default", X, 3, torch.ones(3)),
    ("aten.layer_norm.default", X, [8, 8], torch.ones(8, 8)),
    ("aten.rms_norm.default", X, [8]),
    ("aten.scaled_dot_product_attention.default", X, X[:, :, :5], X[:, :, :5, :4]),
    ("aten.lstm.input", ROWS[None], [torch.ones(2, 4, 5)] * 2,
     [torch.ones(20, 6), torch.ones(20, 5), torch.ones(20), torch.ones(20)] * 2, True, 1, 0.0,
     False, True, False),
    ("aten.gru.input", ROWS[None], torch.ones(1, 1, 5), [torch.ones(15, 6), torch.ones(15, 5)],
     False, 1, 0.0, False, False, True),
    ("aten.zeros.default", [2, 3]),
    ("aten.full.default", [2], True),
    ("aten.full.default", [2], 7),
    ("aten.new_zeros.default", IDS, [4]),
    ("aten.zeros_like.default", X),
    ("aten.arange.default", 5),
    ("aten.arange.start_step", 5, -2, -2),
    ("aten.arange.start_step", 0.5, 3, 0.7),
    ("aten.linspace.default", 0, 1, 5),
    ("aten.repeat.default", ROWS, [2, 1, 3]),
    ("aten.view.default", X, [-1, 16]),
    ("aten.cat.default", [ROWS, ROWS.half(), torch.empty(0)], -1),
    ("aten.stack.default", [ROWS, ROWS], 2),
    ("aten.pad.default", X, [1, 2, -1, 3]),
    ("aten.pad.default", X, [1, 2, 0, 1], "reflect"),
    ("aten.embedding.default", ROWS, IDS),
    ("aten.gather.default", ROWS, 1, IDS),
    ("aten.index_select.default", ROWS, -1, IDS[0]),
    ("aten.index.Tensor", X, [None, IDS, None, IDS]),
    ("aten.index.Tensor", X, [IDS % 2, None, IDS]),
    ("aten.index.Tensor", X, [None, None, IDS, IDS]),
    ("aten.scatter.src", ROWS, 1, IDS, ROWS),
    ("aten.index_put.default", ROWS, [IDS[0]], torch.ones(6)),
    ("aten.masked_scatter.default", ROWS[0], ROWS > 0, torch.ones(24)),
    ("aten.topk.default", ROWS, 2, 0),
    ("aten.one_hot.default", IDS, 4),
    ("aten.pixel_shuffle.default", X.reshape(1, 12, 4, 8), 2),
    ("aten.diag_embed.default", ROWS),
    ("aten.diag_embed.default", X, -2, 3, 0),
    ("aten.broadcast_tensors.default", [ROWS, ROWS[:, :1].half(), ROWS[0]]),
    ("aten.xlogy.Scalar_Self", 2.0, ROWS),
    ("aten.fmax.default", IDS, ROWS[:2, :2]),
    ("aten.angle.default", torch.complex(ROWS, ROWS)),
    ("aten.quantile.scalar", X, 0.3),
    ("aten.quantile.scalar", X, 0.3, 2, True),
    ("aten.quantile.default", X, torch.tensor([0.1, 0.5]), 1),
    ("aten.quantile.default", X, torch.tensor(0.1), None, True),
    ("aten.mse_loss.default", X, X[:1]),
    ("aten.mse_loss.default", X, X[:1], 0),
    ("aten.huber_loss.default", X, X.double(), 2),
    ("aten.binary_cross_entropy_with_logits.default", X, X, X[0], X[0, 0, 0]),
    ("aten.binary_cross_entropy_with_logits.default", X, X, None, None, 0),
    ("aten.cross_entropy_loss.default", ROWS, IDS.flatten()),
    ("aten.cross_entropy_loss.default", X, X, torch.ones(3), 0, -100, 0.1),
    ("aten.cross_entropy_loss.default", X, IDS[:, :1, None].expand(2, 8, 8), None, 0),
    ("aten.cross_entropy_loss.default", ROWS[0], IDS[0, 0], None, 0),
    ("aten.stft.default", ROWS, 4, None, 3, torch.ones(3), False, None, True),
    ("aten.stft.default", ROWS[0].double(), 5, 1, None, None, True, False, True),
    ("aten.fft_fftn.default", ROWS, None, [0, 1]),
    ("aten.split.Tensor", X, 3, 2),
    ("aten.unbind.int", X, 1),
    ("octavo.quantize.default", X, 0.1, 3, 0, 255, torch.uint8),
    ("octavo.dequantize.default", IDS.to(torch.int8), 0.1, 3),
    ("octavo.dequantize.Tensor", IDS.to(torch.int8), torch.ones(2, 1),
     torch.zeros(2, 1, dtype=torch.int32)),
    ("octavo.pack_int4.default", torch.ones(3, 3, dtype=torch.int8)),
    ("octavo.unpack_int4.default", torch.ones(5, dtype=torch.uint8), [3, 3], True),
    ("octavo.fake_quantize_dynamic.default", X.half(), -128, 127, True, True),
    ("octavo.attention.default", X, X, X, None, True, None, False, 255),
]  # fmt: skip


def on_meta(value: Any) -> Any:
    if isinstance(value, list):
        return [on_meta(item) for item in value]
    return value.to("meta") if isinstance(value, Tensor) else value


def found(name: str, *args: Any) -> Any:
    operator: Any = operators.resolve(name)
    return shapes.result_of(name, operator, schemas.bound(operator, tuple(map(on_meta, args)), {}))


def described(result: Any) -> Any:
    if isinstance(result, list | tuple):
        return [described(item) for item in result]
    return tuple(result.shape), result.dtype


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_a_rule_says_what_the_operator_makes(call: tuple[Any, ...]) -> None:
    name, *args = call
    operator: Any = operators.resolve(name)
    result = found(name, *args)
    assert described(result) == described(operator(*args))
    assert all(t.is_meta for t in (result if isinstance(result, list) else [result]))


def test_every_rule_has_an_operator() -> None:
    """A rule that nothing finds would be one that is not held."""
    for name in shapes.RULES:
        short, _, overload = name.removeprefix("octavo.").partition(".")
        packet = getattr(torch.ops.octavo if name.startswith("octavo.") else torch.ops.aten, short)
        assert overload in ("", *packet.overloads())


def test_every_operator_of_octavo_has_a_rule() -> None:
    """Of aten's, torch is asked where there is none."""
    assert {f"octavo.{name}" for name in operators.OCTAVO} <= set(shapes.RULES)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.add.Tensor", (X, ROWS)),
        ("aten.bitwise_and.Tensor", (X, X)),
        ("aten.softmax.int", (X, 4)),
        ("aten.matmul.default", (X, ROWS)),
        ("aten.matmul.default", (X, X.half())),
        ("aten.linear.default", (X, torch.ones(5, 8), torch.ones(4))),
        ("aten.conv2d.default", (X, torch.ones(6, 4, 3, 3))),
        ("aten.conv2d.default", (X, torch.ones(6, 3, 9, 9))),
        ("aten.conv2d.default", (X, torch.ones(6, 3, 3, 3), torch.ones(5))),
        ("aten.conv2d.default", (X, torch.ones(6, 3, 3, 3), None, [0, 1])),
        ("aten.conv2d.default", (X, torch.ones(6, 3, 3))),
        ("aten.batch_norm.default",
         (X, None, None, torch.ones(4), torch.ones(3), False, 0.1, 1e-5, False)),
        ("aten.layer_norm.default", (X, [8], torch.ones(7))),
        ("aten.lstm.input", (ROWS[None], [torch.ones(1, 4, 5)] * 2,
                             [torch.ones(20, 6), torch.ones(20, 4)], False, 1, 0.0, False, False,
                             False)),
        ("aten.view.default", (X, [-1, 7])),
        ("aten.view.default", (X, [-1, -1])),
        ("aten.repeat.default", (X, [2])),
        ("aten.embedding.default", (ROWS, ROWS)),
        ("aten.gather.default", (ROWS, 1, torch.ones(5, 1, dtype=torch.int64))),
        ("aten.one_hot.default", (IDS, -1)),
        ("aten.einsum.default", ("ij,jk", [ROWS, ROWS])),
        ("aten.einsum.default", ("ij->k", [ROWS])),
        ("aten.diag_embed.default", (X, 0, 1, 1)),
        ("aten.broadcast_tensors.default", ([X, ROWS],)),
        ("aten.mse_loss.default", (X, X, 3)),
        ("aten.mse_loss.default", (X, ROWS)),
        ("aten.binary_cross_entropy_with_logits.default", (ROWS, X)),
        ("aten.cross_entropy_loss.default", (ROWS, IDS)),
        ("aten.cross_entropy_loss.default", (ROWS, IDS.flatten().to(torch.int32))),
        ("aten.cross_entropy_loss.default", (ROWS, IDS.flatten(), torch.ones(5))),
        ("aten.cross_entropy_loss.default", (IDS, IDS)),
        ("aten.cross_entropy_loss.default", (ROWS, IDS.flatten(), None, -1)),
        ("aten.stft.default", (ROWS, 7, None, None, None, False, None, True)),
        ("aten.stft.default", (ROWS, 3, None, None, None, False, None, True)),  # hops of 0
        ("aten.stft.default", (ROWS, 4, None, None, torch.ones(3), False, None, True)),
        ("aten.stft.default", (ROWS, 4, None, None, None, False, None, False)),
        ("octavo.dequantize.Tensor", (IDS.to(torch.int8), torch.ones(3, 1),
                                      torch.zeros(3, 1, dtype=torch.int32))),
        ("octavo.dequantize.Tensor", (IDS.to(torch.int8), torch.ones(2, 1),
                                      torch.zeros(2, 1, dtype=torch.int64))),
        ("octavo.unpack_int4.default", (torch.ones(4, dtype=torch.uint8), [3, 3], True)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, RuntimeError, LookupError)):
        found(name, *args)


def test_what_depends_on_values_is_as_large_as_it_can_be() -> None:
    assert found("aten.index.Tensor", ROWS, [MASK]).shape == (4, 6)
    assert found("aten.index.Tensor", ROWS, [ROWS > 0]).shape == (24,)
    assert found("aten.index.Tensor", X, [None, None, X[0, 0] > 0]).shape == (2, 3, 64)
    values, places, counts = found("aten.unique_consecutive.default", ROWS, True, True)
    assert (values.shape, places.shape, counts.shape) == ((24,), (4, 6), (24,))


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 5]), max_size=4), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_broadcasting_is_torchs(sizes: list[list[int]]) -> None:
    try:
        expected = torch.broadcast_shapes(*map(tuple, sizes))
    except RuntimeError:
        with pytest.raises(ValueError, match="do not fit"):
            broadcast(*sizes)
    else:
        assert broadcast(*sizes) == tuple(expected)
