"""The modules of `octavo.nn` in a model, and what was decided about them, as a plan says it.

Tested in tests/measuring/layers/test_module_errors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from octavo.model.nn import QuantizedModule
from octavo.model.parts import parts_of
from octavo.quantization.placement.candidates import RETURNING_FLOATS
from octavo.quantization.plan import Plan, TensorPlan
from octavo.quantization.qconfig import QSpec
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import weight_only_qconfig
from octavo.runtimes.cpu import host_target


def modules_in(q: object) -> dict[str, QuantizedModule]:
    """The modules of `octavo.nn`, by their paths; none of those that stand inside of another."""
    if not isinstance(q, nn.Module):
        return {}
    return {path: part for path, part in parts_of(q).items() if isinstance(part, QuantizedModule)}


def plan_of_modules(modules: Mapping[str, QuantizedModule]) -> Plan:
    """What was decided about a model's modules; its target is the CPU at hand.

    Args:
        modules: of `modules_in`.
    """
    observer = weight_only_qconfig().weight.observer
    tensors = {}
    for path, module in modules.items():
        dynamic = module.activation
        result = TensorPlan(
            tensor=path,
            kind="activation",
            op=module.operator,
            runs=module.runs,
            spec=None,
            dynamic=None if dynamic is None else QSpec(dynamic),
            shares=None,
            fused_into=None,
            reason=RETURNING_FLOATS[module.runs],
        )
        for name, weight in module.weights.items():
            tensors[weight_name(path, name)] = replace(
                result,
                tensor=weight_name(path, name),
                kind="weight",
                spec=QSpec(weight.scheme, observer),
                reason=Reason(ReasonKind.WEIGHT, f"weight of {path}"),
            )
        tensors[path] = result
    modes = {module.runs for module in modules.values()}
    return Plan(host_target(), "weight_only" if modes == {"weight_only"} else "dynamic", tensors)


def weight_name(path: str, name: str) -> str:
    """What a weight of the module at a path is called in the model."""
    return f"{path}.{name}" if path else name
