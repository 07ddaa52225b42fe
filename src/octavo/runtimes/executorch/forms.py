"""A quantized graph in ExecuTorch's words: integers as its operators ``quantized_decomposed`` say.

ExecuTorch's partitioner for XNNPACK looks for one pattern: an operator that reads nothing but
dequantized tensors and whose result is quantized. What is read back is written once for each
reader, since one delegate would otherwise have to wait for another that waits for it.

Integers there are int8 with all 256 values: unsigned ones are shifted, and what has fewer values is
clipped before it is rounded. Weights have one scale for each output channel, or four bits in
groups, and no zero points. Others are read back by plain arithmetic, and their layers run in float.

Tested in tests/runtimes/executorch/test_forms.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref, refs_in
from octavo.graph.operators import arguments
from octavo.graph.program import Step, step_of
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DYNAMIC,
    QUANTIZE,
    UNPACK,
    QuantizedWeight,
    rounding_behind,
    weight_behind,
)
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, groups_of
from octavo.numerics import octavo_operators
from octavo.quantization.fusions import CLIPS
from octavo.quantization.targets import ROLES, SHARED
from octavo.runtimes.executorch.package import integer_operators

LOWEST, HIGHEST = -128, 127
_FOUR_BITS = (-8, 7)
_LEAST_GROUP = 32  # of what XNNPACK's groups are multiples
# Written where they are read.
_READ_BACK = frozenset({DEQUANTIZE, DEQUANTIZE_WEIGHT, DYNAMIC, UNPACK})
_BYTES = (torch.int8, torch.uint8)
_CLIPS = CLIPS | {"clamp", "clamp_min", "clamp_max"}
_PADS = ("aten.pad.default", "aten.constant_pad_nd.default")


@dataclass(frozen=True)
class Forms:
    """A graph's steps in ExecuTorch's words.

    Attributes:
        steps: in an order in which they can run.
        constants: what they read, by name.
        outputs: what the graph returns, by the names that steps have.
        nodes: step -> the node that it belongs to.
        in_float: layers whose integers XNNPACK's kernels do not read -> why, as a clause.
    """

    steps: tuple[Step, ...]
    constants: dict[str, Tensor]
    outputs: tuple[str, ...]
    nodes: dict[str, str]
    in_float: dict[str, str]


def forms_of(graph: Graph) -> Forms:
    """The graph in ExecuTorch's words."""
    writer = _Writer(graph)
    for node in graph.nodes:
        if node.op not in _READ_BACK:
            writer.write(node)
    outputs = tuple(
        writer.write_output(name, index) for index, name in enumerate(graph.output_names())
    )
    read = {*refs_in([(step.args, dict(step.kwargs)) for step in writer.steps]), *outputs}
    own = {name: tensor for name, tensor in graph.constants.items() if name in read}
    constants = {**own, **writer.constants}
    return Forms(tuple(writer.steps), constants, outputs, writer.nodes, writer.in_float)


class _Writer:
    """Writes one graph, node by node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.nodes: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.in_float: dict[str, str] = {}

    def write(self, node: Node) -> None:
        """A node, behind what it reads back."""
        after = self.graph.only_user(node.name)
        if after is not None and _clips(after) and self._is_clipped_by_a_layer(node):
            return  # written there
        if node.op == QUANTIZE:
            self._add(node.name, self._quantizing(node))
            return
        names = {name: self._read_back(name, node) for name in dict.fromkeys(node.refs())}
        renamed = node.renamed(names)
        step = step_of(renamed, torch.device("cpu"))
        function = octavo_operators.attention if node.op == ATTENTION else step.function
        self._add(node.name, [replace(step, function=function)])

    def write_output(self, name: str, index: int) -> str:
        """A value for the caller, with the integers that the graph has; gives what it is called."""
        node = self.graph.by_name.get(name)
        caller = Node(f"output.{index}", "")
        if node is None or node.op != QUANTIZE or arguments(node)["dtype"] != torch.uint8:
            return self._read_back(name, caller)
        self._add(name, [Step(caller.name, _as_bytes, (Ref(name),))])
        return caller.name

    def _add(self, node: str, steps: Sequence[Step]) -> None:
        self.steps += steps
        self.nodes |= {step.out: node for step in steps}

    def _constant(self, name: str, tensor: Tensor) -> Ref:
        self.constants[name] = tensor.contiguous()
        return Ref(name)

    def _read_back(self, name: str, reader: Node) -> str:
        """What the reader calls a value; what is dequantized for it is written here."""
        node = self.graph.by_name.get(name)
        if node is None or node.op not in _READ_BACK:
            return name
        copy = f"{name}.of.{reader.name}"
        weight = weight_behind(self.graph, Ref(name))
        if weight is not None:
            steps = [self._weight(weight, reader, copy)]
        elif node.op == DYNAMIC:
            steps = list(self._dynamic(node, reader, copy))
        elif node.op == DEQUANTIZE:
            steps = [self._dequantize(node, reader, copy)]
        else:
            steps = [replace(step_of(node, torch.device("cpu")), out=copy)]
        self._add(reader.name, steps)
        return copy

    def _quantizing(self, node: Node) -> list[Step]:
        """The steps that round a value, clipped before where not all 256 integers are meant."""
        x, scale, zero_point, qmin, qmax, dtype = arguments(node).values()
        if dtype not in _BYTES:
            return [Step(node.name, octavo_operators.quantize, node.args, node.kwargs)]
        steps = []
        if _clips(node) or self._is_copied(node):
            low, high = ((q - zero_point) * scale for q in (qmin, qmax))
            before = self.graph.producer(x)
            if before is not None and self._is_clipped_by_a_layer(before):
                least, most = _bounds(before)  # one kernel clips once
                low, high, x = max(low, least), min(high, most), before.args[0]
            x = Ref(self._read_back(x.name, node))
            clip = Step(f"{node.name}.clipped", torch.ops.aten.hardtanh.default, (x, low, high))
            steps, x = [clip], Ref(clip.out)
        args = (x, scale, zero_point + _shift(dtype), LOWEST, HIGHEST, torch.int8)
        return [*steps, Step(node.name, integer_operators().quantize_per_tensor.default, args)]

    def _is_clipped_by_a_layer(self, node: Node) -> bool:
        """Whether a node is a clip that only a rounding reads, of what a layer computes."""
        if node.short_op not in CLIPS or self.graph.only_user(node.name) is None:
            return False
        source = self.graph.producer(node.args[0])
        return source is None or source.op != DEQUANTIZE

    def _is_copied(self, node: Node) -> bool:
        """Whether a node rounds what XNNPACK would copy, integers of another scale: its kernels
        that clip and move integers change no scale. A clip in between makes them run in float.
        """
        moved = self.graph.producer(arguments(node)["x"])
        if moved is None or not _copies(moved):
            return False
        before = (rounding_behind(self.graph, Ref(name)) for name in moved.refs())
        return any(_form(other) != _form(node) for other in before if other is not None)

    def _pads_for_floats(self, reader: Node) -> bool:
        """Whether a node pads what a layer in float reads: XNNPACK would pad integers for it."""
        if reader.op in _PADS:
            after = self.graph.only_user(reader.name)
            return after is None or after.op != QUANTIZE
        is_same = reader.op.endswith(".padding")
        return is_same and weight_behind(self.graph, reader.args[1]) is None

    def _dequantize(self, node: Node, reader: Node, copy: str) -> Step:
        q, scale, zero_point = arguments(node).values()
        rounding = rounding_behind(self.graph, Ref(node.name))
        stored = None if rounding is None else arguments(rounding)["dtype"]
        if stored in _BYTES and self._pads_for_floats(reader):
            return Step(copy, _arithmetic, (q, scale, zero_point + _shift(stored)))
        if stored not in _BYTES:
            return Step(copy, octavo_operators.dequantize, (q, scale, zero_point))
        args = (q, scale, zero_point + _shift(stored), LOWEST, HIGHEST, torch.int8)
        return Step(copy, integer_operators().dequantize_per_tensor.default, args)

    def _dynamic(self, node: Node, reader: Node, copy: str) -> Iterator[Step]:
        """Rounded by the range of each row, which is the way that XNNPACK has."""
        x, qmin, qmax, symmetric, per_token = arguments(node).values()
        if not per_token or symmetric or qmax - qmin != HIGHEST - LOWEST:
            function = octavo_operators.fake_quantize_dynamic
            yield Step(copy, function, (x, qmin, qmax, symmetric, per_token))
            self.in_float[reader.name] = "XNNPACK rounds each row by its own range, to 256 values"
            return
        choose, scale, zero_point, integers = (
            f"{copy}.{part}" for part in ("range", "scale", "zero_point", "quantized")
        )
        ops, how = integer_operators(), (Ref(scale), Ref(zero_point), LOWEST, HIGHEST, torch.int8)
        yield Step(choose, ops.choose_qparams_per_token_asymmetric.default, (x, torch.int8))
        yield Step(scale, _item, (Ref(choose), 0))
        yield Step(zero_point, _item, (Ref(choose), 1))
        yield Step(integers, ops.quantize_per_token.default, (x, *how))
        yield Step(copy, ops.dequantize_per_token.default, (Ref(integers), *how, torch.float32))

    def _weight(self, weight: QuantizedWeight, reader: Node, copy: str) -> Step:
        why = unreadable(weight, reader) or _unrounded(reader, self.graph)
        if why:
            self.in_float[reader.name] = why
            return self._by_arithmetic(weight, copy)
        integers = weight.integers.to(torch.int16) + _weight_shift(weight)
        stored = self._constant(weight.name, integers.to(torch.int8))
        low, high = _FOUR_BITS if weight.unpack is not None else (LOWEST, HIGHEST)
        ops, scale_name = integer_operators(), f"{weight.name}.scale"
        zero_name = f"{weight.name}.zero_point"
        if weight.grouped:
            zeros = self._constant(zero_name, torch.zeros_like(weight.scale, dtype=torch.int8))
            scales = self._constant(scale_name, weight.scale)
            size = weight.shape[1] // weight.scale.shape[1]
            in_groups = (scales, zeros, low, high, torch.int8, size, torch.float32)
            return Step(copy, ops.dequantize_per_channel_group.default, (stored, *in_groups))
        axis = _output_axis(reader)
        scale = weight.channel_scale(axis)
        assert scale is not None
        zeros = self._constant(zero_name, torch.zeros_like(scale, dtype=torch.int64))
        by_channel = (self._constant(scale_name, scale), zeros, axis, low, high, torch.int8)
        return Step(copy, ops.dequantize_per_channel.default, (stored, *by_channel))

    def _by_arithmetic(self, weight: QuantizedWeight, copy: str) -> Step:
        scale, zero_point = weight.parameters()
        integers = self._constant(weight.name, weight.integers)
        args = (
            self._constant(f"{weight.name}.scale", scale),
            self._constant(f"{weight.name}.zero_point", zero_point.to(torch.float32)),
        )
        return Step(copy, _arithmetic, (integers, *args))


def _clips(node: Node) -> bool:
    """Whether a node rounds to fewer integers than a byte has."""
    if node.op != QUANTIZE or arguments(node)["dtype"] not in _BYTES:
        return False
    _, _, _, qmin, qmax, dtype = arguments(node).values()
    shift = _shift(dtype)
    return bool((qmin + shift, qmax + shift) != (LOWEST, HIGHEST))


def _copies(node: Node) -> bool:
    """Whether XNNPACK has a kernel for it that copies integers."""
    return node.short_op in _CLIPS or ROLES.get(node.short_op) == SHARED


def _form(quantize: Node) -> tuple[float, int]:
    """What the integers of a rounding mean, as signed ones."""
    given = arguments(quantize)
    return given["scale"], given["zero_point"] + _shift(given["dtype"])


def _bounds(clip: Node) -> tuple[float, float]:
    """What a relu or a hardtanh clips to."""
    given = arguments(clip)
    return (given["min_val"], given["max_val"]) if "min_val" in given else (0.0, math.inf)


def _unrounded(layer: Node, graph: Graph) -> str:
    """Why a static layer is none of XNNPACK's on integers, which give nothing else: its
    partitioner takes one for it all the same, and then computes another thing.
    """
    source = graph.producer(layer.args[0])
    if source is None or source.op != DEQUANTIZE:
        return ""
    after = graph.only_user(layer.name)
    if after is not None and after.short_op in CLIPS:
        after = graph.only_user(after.name)
    integers = after is not None and after.op == QUANTIZE and arguments(after)["dtype"] in _BYTES
    return "" if integers else "its result is not rounded, and XNNPACK's kernels give integers"


def _shift(dtype: torch.dtype) -> int:
    """From the integers of a type to int8."""
    return LOWEST if dtype == torch.uint8 else 0


def _weight_shift(weight: QuantizedWeight) -> int:
    """From a weight's integers to signed ones."""
    if weight.signed:
        return 0
    return _FOUR_BITS[0] if weight.unpack is not None else LOWEST


def _output_axis(reader: Node) -> int:
    layout = WEIGHT_LAYOUTS.get(reader.short_op)
    return 0 if layout is None else layout.output_axis


def unreadable(weight: QuantizedWeight, reader: Node) -> str:
    """Why XNNPACK cannot read the integers of a layer's weight; ``""`` where it can."""
    if bool((weight.zero_point + _weight_shift(weight)).any()):
        return "XNNPACK reads weights without zero points"
    if _output_axis(reader) == 1 and groups_of(reader) > 1:
        return "XNNPACK has no transposed convolutions of groups with a scale for each channel"
    if not weight.grouped:
        has_scales = weight.channel_scale(_output_axis(reader)) is not None
        return "" if has_scales else "the scales of its weights are not those of its outputs"
    rows, groups = weight.scale.shape if weight.scale.dim() == 2 else (0, 1)
    if weight.unpack is None or rows != weight.shape[0] or len(weight.shape) != 2:
        return "XNNPACK has groups in weights of linear layers in four bits alone"
    size = weight.shape[1] // groups
    return f"its groups of {size} are no multiple of 32" if size % _LEAST_GROUP else ""


def _item(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _arithmetic(integers: Tensor, scale: float | Tensor, zero_point: float | Tensor) -> Tensor:
    return (integers.to(torch.float32) - zero_point) * scale


def _as_bytes(integers: Tensor) -> Tensor:
    return (integers.to(torch.int32) - LOWEST).to(torch.uint8)
