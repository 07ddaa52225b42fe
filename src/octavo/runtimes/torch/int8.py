"""The ``torch`` runtime: int8 kernels that torch ships, weights packed once, one flat function.

Lowering walks the QDQ graph. Where a layer reads dequantized values and its result is quantized
again, the layer, what can be fused behind it and the quantization become one kernel call on
integers. What has no kernel runs dequantized, and is reported in ``Lowered.fallbacks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import Step, compile_steps
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DYNAMIC,
    QUANTIZE,
    is_own,
    rounding_behind,
    weight_behind,
)
from octavo.numerics.native import library
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options
from octavo.runtimes.torch import dynamic, native_floats, native_layers, pixel_quantization
from octavo.runtimes.torch.chains import (
    Call,
    Caller,
    Chain,
    Context,
    Unsupported,
    chain_from,
    integers_of,
)
from octavo.runtimes.torch.early_moves import with_early_moves
from octavo.runtimes.torch.kernel import Kernel, Reads
from octavo.runtimes.torch.kernels import kernels_of
from octavo.runtimes.torch.native_floats import SPLITS
from octavo.runtimes.torch.native_runs import with_programs
from octavo.runtimes.torch.siblings import join_siblings, weights_in_joined
from octavo.runtimes.torch.steps import Placed, tidied

T = TypeVar("T")


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Lower a QDQ graph to int8 kernels."""
    joining, programs = options.joined is not False, options.programs is not False
    lowered = lower_to(graph, "python", joining, programs)
    if not options.channels_last:
        return lowered
    return replace(lowered, run=_on_channels_last(lowered.run))


def lower_to(graph: Graph, caller: Caller, joining: bool = True, programs: bool = True) -> Lowered:
    """Lower to the kernels that can be called from there: join, match, tidy, compile, account."""
    whole, joined = join_siblings(graph) if joining else (graph, dict[str, str]())
    context = Context(whole, caller, programs=programs)
    if not native_floats.obstacle(context):
        context.graph = with_early_moves(whole)
    matched = _matched(context)
    outputs = _with_signed_outputs(matched, context)
    inputs = graph.input_names()
    steps, constants = tidied(matched.placed, inputs, outputs, context.graph.constants)
    run = compile_steps(inputs, with_programs(steps, outputs), outputs, constants)
    return _accounted(run, matched, context, graph, joined)


def _on_channels_last(run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    def call(*tensors: Tensor) -> tuple[Any, ...]:
        return run(*map(_with_channels_last, tensors))

    return call


def _with_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@dataclass
class _Matched:
    """What became of a graph's nodes.

    Attributes:
        placed: the steps, in order.
        kernels: node -> the kernel that runs it, alone or with its neighbours.
        fallbacks: node that reads integers -> why it has no kernel.
        rounds: see `Lowered`.
    """

    placed: list[Placed] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, float] = field(default_factory=dict)


def _matched(context: Context) -> _Matched:
    """Kernels for the chains that have one, the other nodes as they stand.

    A kernel's call stands where its chain ends: by then all that it reads is there.
    """
    matched = _Matched()
    pending: dict[str, Call] = {}
    for node in context.graph.nodes:
        if node.name not in matched.kernels:
            try:
                found = _call_of(context, node)
                if found is not None:
                    chain, call = found
                    pending[chain.nodes[-1].name] = call
                    matched.kernels |= {member.name: call.kernel for member in chain.nodes}
                    matched.rounds[node.name] = call.rounds
            except Unsupported as reason:
                matched.fallbacks[node.name] = str(reason)
        if node.name in pending:
            call = pending[node.name]
            step = Step(node.name, call.function, call.args)
            matched.placed.append(Placed(step, call.overwrites, call.moves))
        elif node.name not in matched.kernels:
            matched.placed += _as_it_stands(context, node)
    return matched


def _call_of(context: Context, node: Node) -> tuple[Chain, Call] | None:
    """The chain that starts at a node, and the call that runs it; ``None`` of a float operator.

    Raises:
        Unsupported: it is quantized, and there is no kernel for it.
    """
    reason = None
    for kernel in _kernels_for(context, node):
        try:
            chain = _chain_for(context, node, kernel)
            return chain, kernel.call(context, chain)
        except Unsupported as refused:
            reason = refused
    if reason is not None:
        raise reason
    return None


def _kernels_for(context: Context, node: Node) -> list[Kernel]:
    """The kernels that may run a node; none where it is a float operator.

    Raises:
        Unsupported: it is quantized, and there is no kernel for it.
    """
    if node.short_op in SPLITS or (is_own(node) and node.op != ATTENTION):
        return []
    read = [context.before_cast(name) for name in node.refs()]
    rounded = [context.dynamic[name][1] for name in read if name in context.dynamic]
    if rounded:
        reads = _read_of(rounded[0], context)
        words = "per-token" if _is_per_token(rounded[0]) else "dynamic"
    elif any(name in context.integers for name in read):
        reads, words = Reads.INTEGERS, "int8"
    elif any(weight_behind(context.graph, Ref(name)) is not None for name in read):
        reads, words = Reads.FLOATS, "weight-only"
    else:
        return []
    kernels = kernels_of(node.short_op, reads)
    if not kernels:
        raise Unsupported(f"torch has no {words} kernel for {node.short_op}")
    return kernels


def _chain_for(context: Context, node: Node, kernel: Kernel) -> Chain:
    return Chain(node) if kernel.fusion is None else chain_from(context, node, kernel.fusion)


def _is_per_token(rounding: Node) -> bool:
    per_token: bool = arguments(rounding)["per_token"]
    return per_token


def _read_of(rounding: Node, context: Context) -> Reads:
    """How what is rounded at each call is read: compilers must not see its scale as a number."""
    by_tensors = _is_per_token(rounding) or context.caller != "python"
    return Reads.TENSOR_SCALES if by_tensors else Reads.OWN_RANGE


def _rounding(context: Context, node: Node) -> Callable[..., Any]:
    """What rounds an input at each call, for the kernels that read it so."""
    if _read_of(node, context) is Reads.OWN_RANGE:
        return dynamic.quantize_dynamic(node)
    if context.caller == "python":
        return dynamic.quantize_rows(context, node)
    return dynamic.quantize_by_tensors(context, node)


def _as_it_stands(context: Context, node: Node) -> list[Placed]:
    """The steps of a node that no kernel runs."""
    function = native_floats.either(context, node) or operators.resolve(node.op)
    plain = Placed(Step(node.name, function, node.args, node.kwargs))
    if node.op == QUANTIZE:
        from_pixels = pixel_quantization.step_from_pixels(context, node)
        if from_pixels is not None:
            return [Placed(from_pixels)]
        return [Placed(Step(node.name, native_layers.quantize(context, node), node.args[:1]))]
    if node.op == DEQUANTIZE:
        source = rounding_behind(context.graph, Ref(node.name))
        if source is None:
            return [plain]
        integers = integers_of(source)
        context.integers[node.name] = (source.name, integers)
        return [Placed(Step(node.name, native_layers.dequantize(context, node), node.args[:1]))]
    if node.op == DYNAMIC and dynamic.fits_a_byte(node):
        parts = f"{node.name}.integers"
        context.dynamic[node.name] = (parts, node)
        return [Placed(Step(parts, _rounding(context, node), node.args[:1])), plain]
    if node.short_op in SPLITS and node.args[0].name in context.integers:
        # A list of parts: of the integers for those that read integers, of floats for the rest.
        parts = f"{node.name}.integers"
        name, integers = context.integers[node.args[0].name]
        context.integers[node.name] = (parts, integers)
        function = native_layers.split(context, node, name)
        step = Step(parts, function, (Ref(name), *node.args[1:]), node.kwargs)
        return [Placed(step, moves=name), plain]
    return [plain]


def _signed(quantize: Node, name: str) -> Step:
    """The int8 integers of a quantize node, out of the unsigned ones that kernels work on."""
    shift = integers_of(quantize).zero_point - arguments(quantize)["zero_point"]

    def kernel(q: Tensor) -> Tensor:
        return q.to(torch.int16).sub_(shift).to(torch.int8)

    return Step(name, kernel, (Ref(quantize.name),))


def _with_signed_outputs(matched: _Matched, context: Context) -> list[str]:
    """The outputs' names, where integers that leave the model are int8 again if they were."""
    outputs = context.graph.output_names()
    for index, name in enumerate(outputs):
        node = context.graph.by_name.get(name)
        if node is not None and node.op == QUANTIZE and arguments(node)["dtype"] == torch.int8:
            outputs[index] = f"{name}.signed"
            matched.placed.append(Placed(_signed(node, outputs[index])))
    return outputs


def _accounted(
    run: Callable[..., tuple[Any, ...]],
    matched: _Matched,
    context: Context,
    graph: Graph,
    joined: Mapping[str, str],
) -> Lowered:
    """With what runs each layer, under the names that layers had before they were joined."""
    prepacked = {
        name: unpack for name, unpack in context.prepacked.items() if name in graph.constants
    }
    for name, (whole, rows) in weights_in_joined(graph, joined).items():
        if whole in context.prepacked:
            prepacked[name] = partial(_rows_of, context.prepacked[whole], rows)
    kernels = _with_joined(matched.kernels, joined)
    fallbacks = _with_joined(matched.fallbacks, joined)
    rounds = _with_joined(matched.rounds, joined)
    note = _note(fallbacks, graph)
    products = context.products
    return Lowered(run, kernels, fallbacks, note, rounds, prepacked=prepacked, products=products)


def _note(fallbacks: Mapping[str, str], graph: Graph) -> str:
    """What kernels of Octavo's own would run, if they were installed."""
    missing = (name for name, reason in fallbacks.items() if reason == library.MISSING)
    layers = dict.fromkeys(graph.by_name[name].short_op for name in missing)
    return library.NOTE.format(layers=" and ".join(layers)) if layers else ""


def _with_joined(by_node: Mapping[str, T], joined: Mapping[str, str]) -> dict[str, T]:
    return {
        **by_node,
        **{name: by_node[whole] for name, whole in joined.items() if whole in by_node},
    }


def _rows_of(unpack: Callable[[], Tensor], rows: slice) -> Tensor:
    return unpack()[rows].clone()
