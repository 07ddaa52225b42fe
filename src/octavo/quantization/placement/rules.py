"""`place`: all rules, one after the other."""

from __future__ import annotations

from octavo.graph.graph import Graph
from octavo.quantization.placement.candidates import (
    candidates,
    place_in_bfloat16,
    place_without_ranges,
)
from octavo.quantization.placement.context import Context
from octavo.quantization.placement.fusion import fuse
from octavo.quantization.placement.node_qconfigs import is_fusable, qconfig_of
from octavo.quantization.placement.placement import Placement
from octavo.quantization.placement.specs import specify
from octavo.quantization.placement.surroundings import between_int8_layers
from octavo.quantization.placement.tied_weights import unify_tied_weights
from octavo.quantization.qconfig import QConfig, QConfigMapping
from octavo.quantization.targets import Target


def place(graph: Graph, mapping: QConfigMapping, target: Target, mode: str) -> Placement:
    """Apply the rules that `octavo.quantization.placement` states.

    Raises:
        PlanError: a rule asks for a mode that an operator cannot have, or rules for different
            integers of one weight.
    """
    placement = Placement()
    qconfigs: dict[str, QConfig | None] = {}
    rules = {node.name: mapping.rule_for(node) for node in graph.nodes}
    for node in graph.nodes:
        rule = rules[node.name]
        qconfig, reason = qconfig_of(node, rule, target, mode)
        qconfigs[node.name] = qconfig
        if reason is not None and not is_fusable(node, rule, target, mode):
            placement.reasons[node.name] = reason
    context = Context(graph, target, qconfigs)
    place_in_bfloat16(context, rules, placement)
    place_without_ranges(context, placement)
    kept = between_int8_layers(context, candidates(context, placement), placement)
    fuse(context, kept, placement)
    specify(context, placement)
    unify_tied_weights(context, placement)
    return placement
