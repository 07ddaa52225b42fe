"""The ``torch`` runtime: int8 kernels that torch ships, weights packed once, one flat function.

Lowering walks the QDQ graph. Where a layer reads dequantized values and its result is quantized
again, the layer, what can be fused behind it and the quantization become one kernel call on
integers. What has no kernel runs dequantized, and is reported in ``Lowered.fallbacks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Graph, Node, Ref, refs_in
from octavo.graph.program import Step, compile_steps
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DYNAMIC,
    QUANTIZE,
    UNPACK,
    WEIGHT_READERS,
    is_own,
)
from octavo.quantization.bfloat16 import CAST
from octavo.runtimes.lowered import Lowered, Options
from octavo.runtimes.torch import (
    dynamic,
    integer_ops,
    onednn,
    pixels,
    transposed,
    weight_only,
)
from octavo.runtimes.torch import integer_kernels as kernels
from octavo.runtimes.torch.chains import (
    Call,
    Chain,
    Context,
    Unsupported,
    chain_from,
    integers_of,
)
from octavo.runtimes.torch.siblings import join_siblings, weights_in_joined

_SPLITS = frozenset({"chunk", "split", "split_with_sizes", "unbind"})
_MOVES = """
    reshape flatten unflatten squeeze unsqueeze transpose permute t movedim swapaxes expand repeat
    flip roll narrow slice select getitem pixel_shuffle pixel_unshuffle channel_shuffle
    upsample_nearest1d upsample_nearest2d upsample_nearest3d amax
"""
_POOLS = """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
"""
_Lowering = Callable[[Context, Chain], Call]
# Of layers that read integers with a fixed scale.
_STATIC: dict[str, _Lowering] = {
    "conv1d": onednn.conv,
    "conv2d": onednn.conv,
    "conv3d": onednn.conv,
    "conv_transpose2d": transposed.conv_transpose2d,
    "linear": onednn.linear,
    "add": integer_ops.addition,
    "sub": integer_ops.elementwise(kernels.subtract),
    "mul": integer_ops.elementwise(kernels.multiply),
    "relu": integer_ops.activation,
    "hardtanh": integer_ops.activation,
    "mean": integer_ops.mean,
    "max_pool2d": integer_ops.max_pool2d,
    "cat": integer_ops.cat,
    "stack": integer_ops.cat,
    "pad": integer_ops.pad,
    "constant_pad_nd": integer_ops.pad,
    **dict.fromkeys(_POOLS.split(), integer_ops.average),
    **dict.fromkeys(_MOVES.split(), integer_ops.move),
}
# Of layers that read integers with the scale of their own range.
_DYNAMIC: dict[str, _Lowering] = {
    "conv1d": dynamic.conv,
    "conv2d": dynamic.conv,
    "conv3d": dynamic.conv,
    "linear": dynamic.linear,
}
# The same with scales that are tensors: of each row, or where a compiler must not see numbers.
_BY_TENSORS: dict[str, _Lowering] = {"linear": dynamic.linear_by_tensors}
# Of layers that read floats and have integers for weights.
_WEIGHT_ONLY: dict[str, _Lowering] = {
    "linear": weight_only.linear,
    "embedding": weight_only.embedding,
}
# These leave the activation behind a layer to itself.
_ALONE = (*_BY_TENSORS.values(), *_WEIGHT_ONLY.values())


@dataclass(frozen=True)
class Kernels:
    """How what is rounded at each call is run.

    Attributes:
        dynamic: kernels of layers that read one scale for all their input.
        rounding: what rounds that input.
        compiled: only kernels that torch.compile can call.
        packaged: only kernels that a compiled library can call.
    """

    dynamic: Mapping[str, _Lowering]
    rounding: Callable[[Node], Callable[..., object]]
    compiled: bool = False
    packaged: bool = False


EAGER = Kernels(_DYNAMIC, dynamic.quantize_dynamic)
COMPILED = Kernels(_BY_TENSORS, dynamic.quantize_by_tensors, compiled=True)
PACKAGED = replace(COMPILED, compiled=False, packaged=True)


@dataclass(frozen=True)
class _Placed:
    """A step, with what its memory is shared with."""

    step: Step
    overwrites: str | None = None
    moves: str | None = None


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Lower a QDQ graph to int8 kernels."""
    return lower_to(EAGER, graph)


def lower_to(chosen: Kernels, graph: Graph) -> Lowered:
    """Lower to a set of kernels."""
    apart = graph
    graph, joined = join_siblings(graph)
    context = Context(graph, chosen.compiled, chosen.packaged)
    placed: list[_Placed] = []
    used: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    rounds: dict[str, float] = {}
    pending: dict[str, Call] = {}
    for node in graph.nodes:
        if node.name not in used:
            try:
                lowering = _lowering_of(context, node, chosen)
                if lowering is not None:
                    alone = lowering in _ALONE
                    chain = Chain(node) if alone else chain_from(context, node)
                    call = lowering(context, chain)
                    pending[chain.nodes[-1].name] = call
                    used |= {member.name: call.kernel for member in chain.nodes}
                    rounds[node.name] = call.rounds
            except Unsupported as reason:
                fallbacks[node.name] = str(reason)
        if node.name in pending:
            call = pending[node.name]
            step = Step(node.name, call.function, call.args)
            placed.append(_Placed(step, call.overwrites, call.moves))
        elif node.name not in used:
            placed += _as_it_stands(context, node, chosen)
    outputs = graph.output_names()
    for index, name in enumerate(outputs):
        if name in context.nodes and context.nodes[name].args[-1:] == (torch.int8,):
            outputs[index] = f"{name}.signed"
            placed.append(_Placed(_signed(context.nodes[name], outputs[index])))
    placed = _pruned(placed, frozenset(outputs))
    steps, constants = _with_folded_constants(_with_safe_memory(placed, context), graph.constants)
    inputs = [given.name for given in graph.inputs]
    run = compile_steps(inputs, steps, outputs, constants)
    used |= {name: used[whole] for name, whole in joined.items() if whole in used}
    fallbacks |= {name: fallbacks[whole] for name, whole in joined.items() if whole in fallbacks}
    rounds |= {name: rounds[whole] for name, whole in joined.items() if whole in rounds}
    held = {name: unpack for name, unpack in context.held.items() if name in apart.constants}
    for name, (whole, rows) in weights_in_joined(apart, joined).items():
        if whole in context.held:
            held[name] = partial(_rows_of, context.held[whole], rows)
    return Lowered(run, used, fallbacks, rounds=rounds, held=held)


def _rows_of(unpack: Callable[[], Tensor], rows: slice) -> Tensor:
    return unpack()[rows].clone()


def _lowering_of(context: Context, node: Node, chosen: Kernels) -> _Lowering | None:
    """How a node is lowered to a kernel; ``None`` where it is a float operator.

    Raises:
        Unsupported: it is quantized, and there is no kernel for it.
    """
    if node.short_op in _SPLITS or (is_own(node) and node.op != ATTENTION):
        return None
    read = [context.before_cast(name) for name in node.refs()]
    rounded = [context.dynamic[name][1] for name in read if name in context.dynamic]
    if rounded:
        per_token = rounded[0].args[4]
        table, kind = (_BY_TENSORS, "per-token") if per_token else (chosen.dynamic, "dynamic")
    elif any(name in context.integers for name in read):
        table, kind = _STATIC, "int8"
    elif any(context.reader_of(Ref(name)) is not None for name in read):
        table, kind = _WEIGHT_ONLY, "weight-only"
    else:
        return None
    if node.short_op in table:
        return table[node.short_op]
    raise Unsupported(f"torch has no {kind} kernel for {node.short_op}")


def _as_it_stands(context: Context, node: Node, chosen: Kernels) -> list[_Placed]:
    """The steps of a node that no kernel runs."""
    plain = _Placed(Step(node.name, operators.resolve(node.op), node.args, node.kwargs))
    if node.op == QUANTIZE:
        from_pixels = pixels.step_from_pixels(context, node)
        if from_pixels is not None:
            return [_Placed(from_pixels)]
        return [_Placed(Step(node.name, kernels.quantize(integers_of(node)), node.args[:1]))]
    if node.op == DEQUANTIZE:
        source = context.nodes.get(node.args[0].name)
        if source is None or source.op != QUANTIZE:
            return [plain]
        integers = integers_of(source)
        context.integers[node.name] = (source.name, integers)
        kernel = kernels.dequantize(integers.scale, integers.zero_point)
        return [_Placed(Step(node.name, kernel, node.args[:1]))]
    if node.op == DYNAMIC:
        parts = f"{node.name}.integers"
        context.dynamic[node.name] = (parts, node)
        per_token = node.args[4]
        rounding = (dynamic.quantize_by_tensors if per_token else chosen.rounding)(node)
        return [_Placed(Step(parts, rounding, node.args[:1])), plain]
    if node.short_op in _SPLITS and node.args[0].name in context.integers:
        # A list of parts: of the integers for those that read integers, of floats for the rest.
        parts = f"{node.name}.integers"
        name, integers = context.integers[node.args[0].name]
        context.integers[node.name] = (parts, integers)
        step = replace(plain.step, out=parts, args=(Ref(name), *node.args[1:]))
        return [_Placed(step, moves=name), plain]
    return [plain]


def _signed(quantize: Node, name: str) -> Step:
    """The int8 integers of a quantize node, out of the unsigned ones that kernels work on."""
    shift = integers_of(quantize).zero_point - quantize.args[2]

    def kernel(q: Tensor) -> Tensor:
        return q.to(torch.int16).sub_(shift).to(torch.int8)

    return Step(name, kernel, (Ref(quantize.name),))


def _pruned(placed: list[_Placed], outputs: frozenset[str]) -> list[_Placed]:
    """Without the steps whose results nothing reads."""
    needed = set(outputs)
    kept = []
    for item in reversed(placed):
        if item.step.out in needed:
            kept.append(item)
            needed.update(refs_in((item.step.args, item.step.kwargs)))
    return kept[::-1]


def _with_safe_memory(placed: list[_Placed], context: Context) -> list[Step]:
    """The steps, where a kernel overwrites only memory that nothing reads afterwards."""
    last_read: dict[str, int] = dict.fromkeys(context.outputs, len(placed))
    for index, item in enumerate(placed):
        for name in refs_in((item.step.args, item.step.kwargs)):
            last_read[name] = max(index, last_read.get(name, 0))
    memory: dict[str, str] = {}  # a value -> the first that was where it is
    read_until: dict[str, int] = {}  # such a first value -> the last step that reads there
    steps = []
    for index, item in enumerate(placed):
        step = item.step
        shared = item.overwrites or item.moves or step.out
        first = memory.get(shared, shared)
        if item.overwrites is not None:
            read_now = [name for name in refs_in(step.args) if memory.get(name) == first]
            if read_until[first] > index or len(read_now) > 1:
                step = replace(step, function=_on_a_copy(step, item.overwrites))
                first = step.out
        memory[step.out] = first
        read_until[first] = max(read_until.get(first, 0), last_read.get(step.out, 0))
        steps.append(step)
    return steps


def _on_a_copy(step: Step, overwritten: str) -> Callable[..., Tensor]:
    position = [index for index, arg in enumerate(step.args) if arg == Ref(overwritten)][-1]
    function = step.function

    def call(*args: object) -> Tensor:
        arguments = list(args)
        tensor = arguments[position]
        assert isinstance(tensor, Tensor)
        arguments[position] = tensor.clone()
        result: Tensor = function(*arguments)
        return result

    return call


def _with_folded_constants(
    steps: list[Step], constants: Mapping[str, Tensor]
) -> tuple[list[Step], dict[str, Tensor]]:
    """Weights that are read as floats are dequantized, and cast, now, once."""
    known = dict(constants)
    kept = []
    readers = [operators.resolve(name) for name in (*WEIGHT_READERS, UNPACK, CAST)]
    for step in steps:
        names = list(refs_in(step.args))
        if step.function in readers and names and all(name in known for name in names):
            args = [known[arg.name] if isinstance(arg, Ref) else arg for arg in step.args]
            known[step.out] = step.function(*args)
        else:
            kept.append(step)
    return kept, known
