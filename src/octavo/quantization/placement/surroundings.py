"""Where int8 is worth it: between layers that run in it."""

from __future__ import annotations

from octavo.quantization.placement.context import Context
from octavo.quantization.placement.fusion import takes_activation
from octavo.quantization.placement.placement import Placement
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import ROLES, SHARED


def between_int8_layers(context: Context, candidates: set[str], placement: Placement) -> set[str]:
    """Keep, of the computed, shared and activation nodes, those that stand between int8 layers."""
    weighted = {name for name in candidates if context.is_layer(name)}
    kept = set(candidates)
    returned = context.graph.leaving if context.target.integer_results else frozenset()
    while True:
        wanted = set(returned)
        for node in reversed(context.graph.nodes):
            if node.name in weighted or (node.name in kept and node.name in wanted):
                wanted.update(context.reads(node))
        made: set[str] = set(weighted)
        for node in context.graph.nodes:
            inputs = context.reads(node)
            if node.name in kept and any(name in made for name in inputs):
                made.add(node.name)
        read_in_float = {n: _float_reader(context, n, kept) for n in kept - weighted}
        new = {
            n
            for n in kept
            if n in weighted or (n in wanted and n in made and read_in_float[n] is None)
        }
        # An activation that no kernel runs alone is int8 only as part of another kernel.
        new = {n for n in new if n in weighted or _runs_alone_or_is_fused(context, n, new)}
        if new == kept:
            return kept
        for name in kept - new:
            if name not in wanted:
                words = "nothing after it runs in int8"
            elif name not in made:
                words = "its input is float"
            elif read_in_float[name] is not None:
                words = f"{read_in_float[name]} reads it in float"
            else:
                op = context.graph.by_name[name].short_op
                words = f"{op} runs in int8 only fused behind another layer, unless a rule asks"
            placement.reasons[name] = Reason(ReasonKind.SURROUNDINGS, words)
        kept = new


def _float_reader(context: Context, name: str, kept: set[str]) -> str | None:
    """A float operator that reads a value, and not only its sizes."""
    for user in context.graph.users[name]:
        sizes_only = user.meta is None and ROLES.get(user.short_op) != SHARED
        if user.name not in kept and not sizes_only:
            return user.name
    return None


def _runs_alone_or_is_fused(context: Context, name: str, kept: set[str]) -> bool:
    node = context.graph.by_name[name]
    if context.runs_alone(node):
        return True
    before = context.graph.by_name.get(context.reads(node)[0])
    return before is not None and takes_activation(context, before, node, kept)
