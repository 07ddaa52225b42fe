"""One spec for a weight that several layers read: tied, or of a module that is called twice."""

from __future__ import annotations

from dataclasses import replace

from octavo.errors import PlanError
from octavo.quantization.placement.context import Context
from octavo.quantization.placement.placement import Placement
from octavo.quantization.qconfig import QSpec


def unify_tied_weights(context: Context, placement: Placement) -> None:
    """Give all layers that read a weight's integers the same ones.

    They can differ by what the layers are (an axis of output channels, sums of pairs), which has a
    common choice, or by what rules ask for, which has none.

    Raises:
        PlanError: rules ask for different integers.
    """
    readers: dict[str, list[str]] = {}
    for node, weights in placement.weights.items():
        for weight in weights:
            readers.setdefault(weight, []).append(node)
    for weight, nodes in readers.items():
        specs = dict.fromkeys(placement.weights[node][weight] for node in nodes)
        if len(specs) > 1:
            common = _common(context, weight, nodes, list(specs))
            for node in nodes:
                placement.weights[node][weight] = common


def _common(context: Context, weight: str, nodes: list[str], specs: list[QSpec]) -> QSpec:
    asked = {node: context.qconfigs[node] for node in nodes}
    if len({qconfig.weight for qconfig in asked.values() if qconfig is not None}) > 1:
        listed = ", ".join(f"{node!r} {asked[node].weight}" for node in nodes)  # type: ignore[union-attr]
        raise PlanError(
            f"layers share the weight {weight!r}, and rules ask for different integers: {listed}. "
            "Give them one rule, keep all but one in float (None), or give each a weight of its own"
        )
    # Where one of them sums pairs, all keep the room for that.
    wary = [spec for spec in specs if spec.observer == asked[nodes[0]].weight.observer]  # type: ignore[union-attr]
    first, *others = wary or specs
    if any(other.scheme.channel_axis != first.scheme.channel_axis for other in [*others, *specs]):
        return replace(first, scheme=replace(first.scheme, channel_axis=None))
    return first
