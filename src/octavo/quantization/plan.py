"""The plan: for every tensor, is it quantized, how, and why.

`plan` resolves what the user asked for (a `QConfigMapping`) against what the target can do (a
`Target`) on one graph. The result is data: it prints as a table, is stored in the file, and is all
that calibration and conversion look at.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from octavo.arguments import TEXT, expect, meant, of, optional
from octavo.display import Table, Tabular
from octavo.errors import NothingQuantized, PlanError
from octavo.graph.graph import GRAPH, Graph, Node
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.quantization.placement import INTEGERS, Placement, place
from octavo.quantization.qconfig import PRECISIONS, QConfigMapping, QSpec
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import MODES
from octavo.quantization.targets import target as target_of


@dataclass(frozen=True)
class TensorPlan:
    """The decision about one tensor.

    Attributes:
        tensor: its name: an input, a node or a constant of the graph.
        kind: ``"input"``, ``"activation"`` or ``"weight"``.
        op: the operator that makes it, or that uses the weight.
        runs: how that operator runs; empty for inputs. ``"int8"`` (its inputs have fixed scales),
            ``"dynamic"`` (it quantizes its input at each call), ``"weight_only"``,
            ``"bfloat16"`` or ``"float"``.
        spec: scheme and observer; ``None`` keeps the tensor float.
        dynamic: how a dynamic operator quantizes its input.
        shares: the tensor whose scale and zero point this one has as well.
        fused_into: the tensor that the kernel which makes this one returns instead of it.
        reason: why; prints as words.
    """

    tensor: str
    kind: str
    op: str
    runs: str
    spec: QSpec | None
    dynamic: QSpec | None
    shares: str | None
    fused_into: str | None
    reason: Reason

    @property
    def values(self) -> str:
        """The integers of the tensor in words, or ``"float"``."""
        return "float" if self.spec is None else str(self.spec)

    @property
    def on_integers(self) -> bool:
        """Whether the operator reads integers, be they only its weights."""
        return self.runs in INTEGERS

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {"spec": self.spec, "dynamic": self.dynamic, "reason": self.reason}
        return values | {key: None if p is None else p.to_dict() for key, p in parts.items()}


@dataclass(frozen=True)
class Plan(Tabular):
    """All decisions about one graph, in the order in which the tensors are made.

    Attributes:
        target: name of the `Target` it was made for.
        mode: what layers are by default: ``"static"``, ``"dynamic"`` or ``"weight_only"``.
        tensors: a `TensorPlan` for each input, node and quantized weight, by name.
        unmatched: the rules of the mapping that matched nothing.
        precision: of what stays float where no rule says otherwise: ``"float32"``,
            ``"bfloat16"``, or ``"auto"``, which is bfloat16 on CPUs that have instructions for it.

    Example:
        >>> decided = octavo.plan(octavo.capture(model, images))
        >>> decided.tensors["conv1.weight"].values
        'int8 per-channel symmetric'
        >>> str(decided.tensors["conv1"].reason)
        'fused into relu1'
    """

    target: str
    mode: str
    tensors: Mapping[str, TensorPlan]
    unmatched: tuple[str, ...] = ()
    precision: str = "float32"

    @property
    def quantized(self) -> dict[str, TensorPlan]:
        """The tensors that are quantized, by name."""
        return {name: t for name, t in self.tensors.items() if t.spec is not None}

    def runs_int8(self, node: str) -> bool:
        """Whether the node of this name runs in static int8."""
        return node in self.tensors and self.tensors[node].runs == "int8"

    def reads_integers(self, node: str) -> bool:
        """Whether the node of this name reads the integers of its weights.

        One that does not, and is tied to one that does, reads the floats that they were.
        """
        return node in self.tensors and self.tensors[node].on_integers

    def kernel_of(self, tensor: str) -> str:
        """The tensor that the kernel which computes this one returns: its own, if nothing behind it
        was fused.
        """
        planned = self.tensors.get(tensor)
        if planned is None or planned.fused_into is None:
            return tensor
        return self.kernel_of(planned.fused_into)

    @property
    def needs_calibration(self) -> bool:
        """Whether the range of some activation has to be observed on data."""
        return any(t.kind != "weight" for t in self.quantized.values())

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it back."""
        tensors = [tensor.to_dict() for tensor in self.tensors.values()]
        return json.dumps(
            {
                "target": self.target,
                "mode": self.mode,
                "unmatched": list(self.unmatched),
                "precision": self.precision,
                "tensors": tensors,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is not such a plan.
        """
        try:
            data = json.loads(text)
            target_of(data["target"])
            if data["mode"] not in MODES:
                raise ValueError(f"its mode is {data['mode']!r}")
            tensors = [_tensor_plan(item) for item in data["tensors"]]
            unmatched = tuple(str(rule) for rule in data["unmatched"])
            precision = data.get("precision", "float32")  # files of Octavo 0.1 have none
            if precision not in PRECISIONS:
                raise ValueError(f"its precision is {precision!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"not the JSON of a plan: {type(error).__name__}: {error}") from None
        by_name = {t.tensor: t for t in tensors}
        return cls(data["target"], data["mode"], by_name, unmatched, precision)

    def table(self) -> Table:
        rows = ((t.tensor, t.op, t.runs, t.values, str(t.reason)) for t in self.tensors.values())
        title = f"Plan for {self.target}, {self.mode}; what stays float is {self.precision}"
        return Table(("tensor", "op", "runs", "values", "why"), tuple(rows), title)


PLAN = of(Plan, way_out="octavo.plan(graph) gives one")
_MAPPING = of(
    QConfigMapping,
    way_out="give an octavo.QConfigMapping; for one QConfig, QConfigMapping().set_global(qconfig)",
)


def plan(
    graph: Graph,
    mapping: QConfigMapping | None = None,
    target: str = "x86",
    mode: str = "static",
    precision: str = "float32",
) -> Plan:
    """Decide about every tensor of a graph.

    Args:
        graph: from `octavo.capture`.
        mapping: the user's rules; without any, the target's default.
        target: name of a `Target`.
        mode: what a layer is where no rule says otherwise: ``"static"``, ``"dynamic"`` or
            ``"weight_only"``.
        precision: of what stays float: ``"float32"``, ``"bfloat16"`` or ``"auto"``.

    Raises:
        PlanError: a rule names a module that the model does not have, or asks for a mode that an
            operator cannot have, or nothing would be quantized.

    Example:
        >>> from torch import nn, rand
        >>> from octavo import capture
        >>> graph = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), rand(2, 4))
        >>> print(plan(graph).tensors["0"].reason)
        fused into 1
    """
    expect(GRAPH, graph=graph)
    expect(TEXT, target=target, mode=mode)
    optional(_MAPPING, mapping=mapping)
    mapping = mapping or QConfigMapping()
    chosen = target_of(target)
    if mode not in MODES:
        raise PlanError(f"mode is {mode!r}: {meant(mode, MODES, _MODES_ELSEWHERE)}")
    if precision not in PRECISIONS:
        raise PlanError(f"precision is {precision!r}: {meant(str(precision), PRECISIONS)}")
    unmatched = _unmatched(graph, mapping)
    placement = place(graph, mapping, chosen, mode)
    tensors = _tensor_plans(graph, placement)
    result = Plan(target, mode, {t.tensor: t for t in tensors}, unmatched, precision)
    if not result.quantized:
        layers = [t for t in tensors if t.kind == "activation"]
        reasons = sorted({str(t.reason) for t in layers})
        floats = _dtypes_of_layers(graph)
        if floats and torch.float32 not in floats:
            raise NothingQuantized(
                "nothing would be quantized: the layers of the model compute in "
                f"{', '.join(sorted(map(str, floats)))}; quantize model.float(), on float32 data. "
                "octavo.quantize(..., mode='weight_only', scope='modules') takes them as they are"
            )
        raise NothingQuantized(
            "nothing would be quantized: no layer can be quantized "
            f"({'; '.join(reasons[:4]) or 'the graph has no operators'}). "
            f"{_way_out(layers, mapping, mode)}"
        )
    return result


_INTEGERS = (
    "int8 comes of itself. mode= says when scales are found: leave it out, or write 'static' "
    "(on calibration data), 'dynamic' or 'weight_only'"
)
_MODES_ELSEWHERE = {
    **dict.fromkeys(("int8", "qint8", "ptq", "8bit"), _INTEGERS),
    **dict.fromkeys(
        ("int4", "4bit", "w4a16"),
        "leave it out, and write qconfig=octavo.weight_only_qconfig(4, group_size=32)",
    ),
    "qat": "octavo.prepare_qat trains with rounding",
}


def _dtypes_of_layers(graph: Graph) -> set[torch.dtype]:
    """Of the weights that layers have; tables of positions and the like may be more exact."""
    read = (name for n in graph.nodes if n.short_op in WEIGHT_LAYOUTS for name in n.refs())
    weights = (graph.constants[name] for name in read if name in graph.constants)
    return {weight.dtype for weight in weights if weight.is_floating_point()}


def _way_out(layers: Sequence[TensorPlan], mapping: QConfigMapping, mode: str) -> str:
    """What to do where nothing would be quantized."""
    misfits = [str(layer.reason) for layer in layers if "group_size" in str(layer.reason)]
    if misfits:
        return (
            "Give a group_size that divides the layers' inputs, 32 or 64 mostly: "
            "octavo.weight_only_qconfig(4, group_size=32)"
        )
    weighted = sorted({layer.op for layer in layers if layer.op in WEIGHT_LAYOUTS})
    asked = any(rule.kind != "global" for rule in mapping.rules)
    if mode == "static" or asked or not weighted:
        return "Relax the rules of the mapping, or leave the model as it is"
    return (
        "Pass calibration=, some batches of its data, for static int8; or ask for it by a rule: "
        f'qconfig=octavo.QConfigMapping().set_object_type("{weighted[0]}", octavo.{mode}_qconfig())'
    )


def unmatched_in_words(graph: Graph, plan: Plan) -> str:
    """The rules that matched nothing, and what they could have matched; ``""`` if all did."""
    if not plan.unmatched:
        return ""
    operators = sorted({node.short_op for node in graph.nodes if node.op.startswith("aten.")})
    return (
        f"rules that match nothing in this model: {', '.join(plan.unmatched)}; its operators are "
        f"{', '.join(operators)}, and a rule for a class of modules is given the class itself, "
        f"{_a_class(graph)}"
    )


def _a_class(graph: Graph) -> str:
    """A class of torch's modules that the graph has a layer of, as it is written."""
    kinds = (n.module_type for n in graph.nodes if n.short_op in WEIGHT_LAYOUTS)
    own = (kind.split(".")[-1] for kind in kinds if kind.startswith("torch.nn.modules."))
    return f"torch.nn.{next(own, 'Conv2d')}"


def _unmatched(graph: Graph, mapping: QConfigMapping) -> tuple[str, ...]:
    """The rules that match no node; a module name that does not exist is an error."""
    missing = [
        rule
        for rule in mapping.rules
        if rule.kind != "global" and not any(rule.matches(node) for node in graph.nodes)
    ]
    paths = sorted({node.module for node in graph.nodes if node.module})
    for rule in missing:
        if rule.kind == "module name":
            close = difflib.get_close_matches(rule.pattern, paths, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {paths[:8]}"
            )
            raise PlanError(f"no module is called {rule.pattern!r}, as a rule has it; {hint}")
    return tuple(str(rule) for rule in missing)


_LAYERS_IN_WORDS = {
    "int8": "an int8 layer",
    "dynamic": "a dynamic layer",
    "weight_only": "a layer of which only the weights are quantized",
}


def _tensor_plans(graph: Graph, placement: Placement) -> list[TensorPlan]:
    plans = []
    users = graph.users
    for entry in graph.inputs:
        plans.append(_value_plan(entry.name, "input", "", placement))
    for node in graph.nodes:
        for weight, spec in placement.weights.get(node.name, {}).items():
            runs = placement.runs(node.name)
            words = f"weight of {_LAYERS_IN_WORDS[runs]}{_kept_for(weight, users, placement)}"
            reason = Reason(ReasonKind.WEIGHT, words)
            plans.append(
                TensorPlan(weight, "weight", node.short_op, runs, spec, None, None, None, reason)
            )
        plans.append(_value_plan(node.name, "activation", node.short_op, placement))
    return list({t.tensor: t for t in plans}.values())


def _kept_for(weight: str, users: Mapping[str, Sequence[Node]], placement: Placement) -> str:
    """What is said of a weight that is tied to a float layer's."""
    floats = [user.name for user in users[weight] if not placement.on_integers(user.name)]
    return f", and kept as floats for {', '.join(floats)}" if floats else ""


def _value_plan(name: str, kind: str, op: str, placement: Placement) -> TensorPlan:
    runs = "" if kind == "input" else placement.runs(name)
    fused_into = placement.fused_into.get(name)
    spec = placement.specs.get(name)
    shares = placement.shares.get(name)
    reason = placement.reasons[name]
    if fused_into is not None:
        reason = Reason(ReasonKind.FUSED, f"fused into {fused_into}")
    elif shares is not None:
        words = f"shares the scale of {shares}: {op or 'read together'}"
        reason = Reason(ReasonKind.SHARED, words)
    dynamic = placement.dynamic.get(name)
    return TensorPlan(name, kind, op, runs, spec, dynamic, shares, fused_into, reason)


def _tensor_plan(data: dict[str, Any]) -> TensorPlan:
    for key in ("tensor", "kind", "op", "runs"):
        if not isinstance(data[key], str):
            raise TypeError(f"its {key} is {data[key]!r}, not text")
    for key in ("shares", "fused_into"):
        if not isinstance(data[key], str | None):
            raise TypeError(f"its {key} is {data[key]!r}, not text or null")
    specs = {
        key: None if data[key] is None else QSpec.from_dict(data[key])
        for key in ("spec", "dynamic")
    }
    runs = data["runs"].replace("weight-only", "weight_only")  # as plans of version 1 spell it
    return TensorPlan(**{**data, **specs, "runs": runs, "reason": Reason.from_json(data["reason"])})
