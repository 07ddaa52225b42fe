"""Which operators LiteRT has kernels on integers for, and what these ask of scales.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import DEQUANTIZE, rounding_behind, weight_behind
from octavo.runtimes.litert.flatbuffer import Quantization
from octavo.runtimes.litert.rounding import Rounding, form_of, rounding_of
from octavo.runtimes.litert.values import Form

Condition = Callable[[Graph, Node, Rounding], bool]


def rounding_on_integers(graph: Graph, node: Node, for_boards: bool = False) -> Rounding | None:
    """How a node's result is rounded if LiteRT runs it on integers; ``None`` if in floats.

    Args:
        graph: with its rounding.
        node: of it.
        for_boards: whether integers are wanted where LiteRT rounds them twice, too.
    """
    if node.short_op in _ROUNDED_TWICE and not for_boards:
        return None
    fits = CONDITIONS.get(node.short_op)
    if fits is None or not node.op.startswith(("aten.", "python.")):
        return None
    rounding = rounding_of(graph, node)
    return rounding if rounding is not None and fits(graph, node, rounding) else None


def _reads_integers(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """All tensors that it reads are known by integers."""
    return all(_has_integers(graph, name) for name in node.refs())


def _of_two_tensors(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """Both operands are known by integers, and none is a number."""
    tensors = all(isinstance(arg, Ref) for arg in node.args[:2])
    return tensors and _reads_integers(graph, node, rounding)


def _has_integers(graph: Graph, name: str) -> bool:
    producer = graph.by_name.get(name)
    return producer is not None and producer.op == DEQUANTIZE


def _layer(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """Its input is integers, and so is its weight, with scales that layers have."""
    given = arguments(node)
    weight = weight_behind(graph, given["weight"])
    bias = given["bias"]
    return (
        _has_integers(graph, given["input"].name)
        and weight is not None
        and weight.symmetric
        and weight.signed
        and not weight.grouped
        and (bias is None or graph.constant(bias) is not None)
    )


def _of_one_form(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """What it reads and gives has one scale."""
    if not _reads_integers(graph, node, rounding):
        return False
    behind = [rounding_behind(graph, Ref(name)) for name in node.refs()]
    return all(form_of(q) == rounding.form for q in behind if q is not None)


def _part_of_one_form(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """One of the parts that an operator makes of integers of the same scale."""
    source = graph.by_name[node.args[0].name]
    return _of_one_form(graph, source, rounding)


def _channels(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """It multiplies the channels of integers by constants."""
    return _has_integers(graph, node.args[0].name)


def _fixed(scale: float, zero_point: int) -> Condition:
    """Its kernel gives int8 with this scale alone."""
    form = Form("int8", Quantization((scale,), (zero_point,)))

    def fits(graph: Graph, node: Node, rounding: Rounding) -> bool:
        return rounding.form == form and _of_eight_bits(graph, node, rounding)

    return fits


def _of_eight_bits(graph: Graph, node: Node, rounding: Rounding) -> bool:
    """It reads and gives int8."""
    if rounding.form.dtype != "int8" or not _reads_integers(graph, node, rounding):
        return False
    behind = [rounding_behind(graph, Ref(name)) for name in node.refs()]
    return all(form_of(q).dtype == "int8" for q in behind if q is not None)


_LAYERS = "conv1d conv2d conv_transpose1d conv_transpose2d linear".split()
_ANY_SCALES = """
    mean relu relu6 hardtanh matmul bmm avg_pool1d avg_pool2d adaptive_avg_pool1d
    adaptive_avg_pool2d
""".split()
# LEAKY_RELU is not among them: its kernels for integers round twice.
_EIGHT_BITS = "elu gelu hardswish".split()
# Of HARD_SWISH XNNPACK takes floats alone. LiteRT's own kernel for integers multiplies by 16 bits:
# some of its results in 1,000 are a step off, and it parts what XNNPACK runs around it.
_ROUNDED_TWICE = frozenset({"hardswish"})
_MOVES = """
    max_pool1d max_pool2d amax amin maximum minimum upsample_nearest2d
    reshape view flatten unflatten squeeze unsqueeze transpose swapaxes swapdims permute t mT
    movedim moveaxis expand expand_as repeat tile flip roll narrow slice select cat concat stack
    pad constant_pad_nd reflection_pad1d reflection_pad2d pixel_shuffle pixel_unshuffle
    channel_shuffle unfold
""".split()
CONDITIONS: Mapping[str, Condition] = {
    **dict.fromkeys(_LAYERS, _layer),
    **dict.fromkeys(["add", "sub", "mul"], _of_two_tensors),
    **dict.fromkeys(_ANY_SCALES, _reads_integers),
    **dict.fromkeys(_EIGHT_BITS, _of_eight_bits),
    **dict.fromkeys(_MOVES, _of_one_form),
    "batch_norm": _channels,
    "getitem": _part_of_one_form,
    "softmax": _fixed(1 / 256, -128),
    "sigmoid": _fixed(1 / 256, -128),
    "tanh": _fixed(1 / 128, 0),
}
