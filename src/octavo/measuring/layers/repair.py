"""What to do about a loss of accuracy: the layers to leave in float, why, and the code for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.display import plain
from octavo.measuring.layers.error_table import LayerError, LayerErrors
from octavo.measuring.layers.sensitivity import LayerSensitivity, Sensitivity
from octavo.quantization.plan import Plan, TensorPlan

WORST = 3  # layers to think about first; more would be no advice
_CLIPPED = 0.001  # share of clipped values from which on it is said
_UNUSED = 0.5  # share of unused integers from which on it is said


@dataclass(frozen=True)
class Repair:
    """A layer that would better stay float.

    Attributes:
        layer: what its kernel returns.
        parts: the layers that this kernel computes; a rule for the last alone would leave the
            others in int8.
        reason: why, in words.
    """

    layer: str
    parts: tuple[str, ...]
    reason: str


def repairs(
    errors: LayerErrors, plan: Plan, sensitivity: Sensitivity | None = None, count: int = WORST
) -> tuple[Repair, ...]:
    """The layers to leave in float first, the worst first.

    They are ranked by what they do to the output where that was measured or estimated, else by the
    error that they make by themselves.

    Args:
        errors: from `octavo.layer_errors`.
        plan: of the quantized model.
        sensitivity: from `octavo.sensitivity`, of the same model.
        count: how many at most.
    """
    rows = {row.tensor: row for row in errors.rows}
    by_layer: dict[str, Repair] = {}
    if sensitivity is not None:
        for layer in sensitivity.layers:
            kernel = plan.kernel_of(layer.layer)
            if plan.tensors.get(kernel) is not None and kernel not in by_layer:
                why = [_effect(layer, sensitivity.metric), *_signs(kernel, plan, rows)]
                by_layer[kernel] = Repair(kernel, _parts(kernel, plan), "; ".join(why))
    else:
        for row in _by_themselves(errors, plan):
            why = [f"{row.sqnr_db:.1f} dB by itself", *_signs(row.tensor, plan, rows)]
            by_layer[row.tensor] = Repair(row.tensor, _parts(row.tensor, plan), "; ".join(why))
    return tuple(by_layer.values())[:count]


def repair_code(wanted: Sequence[Repair], plan: Plan, scope: str | None = None) -> str:
    """Python that quantizes again with these layers in float.

    Args:
        wanted: from `repairs`.
        plan: of the quantized model.
        scope: as for `octavo.quantize`, where it has to be named.
    """
    rules = [
        f"    .set_module_name({_quoted(part)}, None)  # {plain(repair.reason)}"
        for repair in wanted
        for part in repair.parts
    ]
    data = "calibration=loader, " if plan.mode == "static" else "example, "
    named = "" if scope is None else f', scope="{scope}"'
    return "\n".join(
        [
            *("qconfig = (", "    octavo.QConfigMapping()", *rules, ")"),
            f'q = octavo.quantize(model, {data}qconfig=qconfig, mode="{plan.mode}", '
            f'target="{plan.target}"{named})',
        ]
    )


def _quoted(name: str) -> str:
    """As Python reads it: this code is copied and run, and the name may come from a file."""
    return plain(json.dumps(name, ensure_ascii=False))


def _by_themselves(errors: LayerErrors, plan: Plan) -> list[LayerError]:
    """The worst that round by themselves: not inputs, nor what only moves integers about."""
    rows = errors.worst(len(errors.rows))
    own = (row for row in rows if plan.tensors[row.tensor].shares is None)
    return [row for row in own if plan.tensors[row.tensor].on_integers]


def _parts(kernel: str, plan: Plan) -> tuple[str, ...]:
    inner = (n for n in plan.tensors if n != kernel and plan.kernel_of(n) == kernel)
    return (*inner, kernel)


def _effect(layer: LayerSensitivity, metric: str) -> str:
    if layer.alone_db is None:
        return f"alone it would bring the output to about {layer.estimate_db:.1f} dB"
    words = f"alone it brings the output to {layer.alone_db:.1f} dB"
    if layer.without is not None:
        words += f"; without it {metric} is {layer.without:.2f}"
    return words


def _signs(kernel: str, plan: Plan, rows: dict[str, LayerError]) -> list[str]:
    """What is conspicuous about its value and its weights."""
    signs = []
    for part in _parts(kernel, plan):
        for name in (f"{part}.weight", part):
            row, planned = rows.get(name), plan.tensors.get(name)
            if row is not None and planned is not None:
                signs += _conspicuous(row, planned)
    return signs


def _conspicuous(row: LayerError, planned: TensorPlan) -> list[str]:
    what = "weights" if planned.kind == "weight" else "values"
    remarks = []
    if row.clipped >= _CLIPPED:
        remarks.append(f"{100 * row.clipped:.1f} % of its {what} are clipped")
    if row.unused >= _UNUSED:
        remarks.append(f"{100 * row.unused:.0f} % of the integers of its {what} are never used")
    if planned.kind == "weight" and row.sqnr_db < 30:
        remarks.append(f"its weights are rounded to {row.sqnr_db:.1f} dB")
    return remarks
