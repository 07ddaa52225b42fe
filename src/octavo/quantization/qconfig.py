"""What a user writes: `QConfig`, how to quantize, and `QConfigMapping`, where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from octavo.arguments import Kind, described, expect, of, optional
from octavo.errors import PlanError
from octavo.graph.graph import Node
from octavo.numerics.observers import Observer, observer_from_dict
from octavo.numerics.scheme import Scheme

_OFFERS = ("update", "merge", "bounds", "to_dict")
_SCHEME = of(Scheme, way_out="give an octavo.Scheme")
_OBSERVER = Kind(
    lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in _OFFERS),
    "give an observer, octavo.MinMax() for one",
)
_PATH = of(str, way_out='give the path of the module in the model, such as "layer1.0"')


@dataclass(frozen=True)
class QSpec:
    """How the values of one tensor are quantized: the scheme, and the observer of its range.

    Without an observer the range is *dynamic*: that of the very values, found at each call.

    Attributes:
        scheme: type, symmetry and granularity of the integers.
        observer: what finds the range on data; ``None`` for a dynamic one.

    Raises:
        PlanError: the scheme and the observer contradict each other.
        InputError: one of them is something else.

    Example:
        >>> str(QSpec(Scheme("uint8")))
        'uint8 per-tensor affine, dynamic'
    """

    scheme: Scheme
    observer: Observer | None = None

    def __post_init__(self) -> None:
        expect(_SCHEME, scheme=self.scheme)
        optional(_OBSERVER, observer=self.observer)
        if self.scheme.per_token and self.observer is not None:
            raise PlanError(
                "a scale per token is found at run time: leave out the observer "
                f"{self.observer.name!r}, or take a scheme per tensor"
            )
        if self.dynamic and (self.scheme.channel_axis is not None or self.scheme.group_size):
            raise PlanError(
                f"a dynamic range is found per tensor or per token, not {self.scheme.granularity}"
            )

    @property
    def dynamic(self) -> bool:
        """Whether the range is found at run time."""
        return self.observer is None

    def __str__(self) -> str:
        return f"{self.scheme}, dynamic" if self.dynamic else str(self.scheme)

    def to_dict(self) -> dict[str, Any]:
        observer = {"observer": None} if self.observer is None else self.observer.to_dict()
        return self.scheme.to_dict() | observer

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QSpec:
        """What ``to_dict`` described.

        Raises:
            PlanError: an unknown dtype, observer or setting.
        """
        names = {f.name for f in fields(Scheme)}
        scheme = Scheme(**{key: value for key, value in data.items() if key in names})
        rest = {key: value for key, value in data.items() if key not in names}
        dynamic = "observer" in rest and rest["observer"] is None
        return cls(scheme, None if dynamic else observer_from_dict(rest))


_SPEC = of(QSpec, way_out="give an octavo.QSpec(scheme, observer)")


@dataclass(frozen=True)
class QConfig:
    """How an operator's activations and its weight are quantized.

    Attributes:
        activation: of the tensors that it reads and makes. With an observer the layer is *static*;
            with a dynamic range it quantizes what it reads at each call and returns float;
            ``None`` is *weight-only*: activations stay float.
        weight: of its weight, with an observer.

    Raises:
        PlanError: the weight has no observer, or the activation a scale for each group.
        InputError: one of them is no `QSpec`.

    Example:
        >>> from octavo import MovingAverageMinMax, QConfig, QSpec, Scheme
        >>> QConfig(
        ...     activation=QSpec(Scheme("uint8"), MovingAverageMinMax()),
        ...     weight=QSpec(Scheme("int8", symmetric=True, channel_axis=0), MovingAverageMinMax()),
        ... ).weight.scheme.dtype
        'int8'
    """

    activation: QSpec | None
    weight: QSpec

    def __post_init__(self) -> None:
        expect(_SPEC, weight=self.weight)
        optional(_SPEC, activation=self.activation)
        if self.weight.dynamic:
            raise PlanError("a weight does not change at run time: give its QSpec an observer")
        if self.activation is not None and self.activation.scheme.group_size is not None:
            raise PlanError("group_size is for weights; give the activation a scheme per tensor")

    @property
    def mode(self) -> str:
        """``"static"``, ``"dynamic"`` or ``"weight_only"``."""
        if self.activation is None:
            return "weight_only"
        return "dynamic" if self.activation.dynamic else "static"


# Of what stays float.
PRECISIONS = ("float32", "bfloat16", "auto")

# What a rule asks for: integers, ``torch.bfloat16``, or float32, which is ``None``.
Precision = QConfig | torch.dtype | None


@dataclass(frozen=True)
class Rule:
    """One line of a mapping, see `QConfigMapping`.

    Attributes:
        kind: ``"global"``, ``"op type"``, ``"module name regex"``, ``"module name"`` or ``"node"``.
        pattern: what it matches.
        precision: what it asks for.
        inside: path of the module whose graph's nodes it is asked about, in the model that the
            pattern is about.
    """

    kind: str
    pattern: str
    precision: Precision
    inside: str = ""

    def matches(self, node: Node) -> bool:
        paths = [_joined(self.inside, path) for path in (node.module, node.name)]
        return _MATCHERS[self.kind](self.pattern, node, paths)

    def concerns(self, path: str) -> bool:
        """Whether it may say something of a module: one with a name is for what is inside of it."""
        if self.kind != "module name":
            return True
        return is_inside(path, self.pattern) or is_inside(self.pattern, path)

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern!r}" if self.pattern else self.kind


def is_inside(path: str, module: str) -> bool:
    """Whether a path is that of a module, or of something inside of it.

    Example:
        >>> is_inside("layer1.0", "layer1"), is_inside("layer10", "layer1")
        (True, False)
    """
    return path == module or path.startswith(f"{module}.")


def _joined(inside: str, path: str) -> str:
    return f"{inside}.{path}".strip(".")


def _in_module(pattern: str, node: Node, paths: Sequence[str]) -> bool:
    return any(is_inside(path, pattern) for path in paths)


def _by_regex(pattern: str, node: Node, paths: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, path) is not None for path in paths)


def _by_node(pattern: str, node: Node, paths: Sequence[str]) -> bool:
    return pattern == node.name


def _by_op_type(pattern: str, node: Node, paths: Sequence[str]) -> bool:
    return pattern in (node.short_op, node.op, node.module_type)


_MATCHERS: dict[str, Callable[[str, Node, Sequence[str]], bool]] = {
    "global": lambda pattern, node, paths: True,
    "op type": _by_op_type,
    "module name regex": _by_regex,
    "module name": _in_module,
    "node": _by_node,
}
# From the weakest to the strongest; within a kind the longest pattern wins, then the last one set.
_PRECEDENCE = tuple(_MATCHERS)


@dataclass
class QConfigMapping:
    """Rules from layers to `QConfig`. The most specific rule decides: module name, then regex,
    then operator type, then global. ``None`` keeps float, and ``torch.bfloat16`` lets convolutions
    and linear layers compute in it, with weights of two bytes. Without a global rule the target's
    default holds. Each ``set_*`` changes the mapping and returns it, so that calls can be chained.

    Attributes:
        rules: in the order in which they were set.

    Example:
        >>> mapping = QConfigMapping().set_module_name("fc", None).set_object_type("add", None)
        >>> [str(rule) for rule in mapping.rules]
        ["module name 'fc'", "op type 'add'"]
    """

    rules: list[Rule] = field(default_factory=list)

    def set_global(self, qconfig: Precision) -> QConfigMapping:
        """The rule for all that no other rule matches."""
        return self._add("global", "", qconfig)

    def set_object_type(self, kind: Any, qconfig: Precision) -> QConfigMapping:
        """A rule for an operator: its name (``"conv2d"``), a module class or a function."""
        if isinstance(kind, str):
            pattern = kind
        elif isinstance(kind, type):
            pattern = f"{kind.__module__}.{kind.__qualname__}"
        elif callable(kind) and hasattr(kind, "__name__"):
            pattern = kind.__name__
        else:
            raise PlanError(
                f"an object type is a name, a class or a function, not {described(kind)}; for a "
                "module give its class, or its path to set_module_name"
            )
        return self._add("op type", pattern, qconfig)

    def set_module_name(self, name: str, qconfig: Precision) -> QConfigMapping:
        """A rule for a module and all inside it, by its path (``"layer1.0"``)."""
        expect(_PATH, name=name)
        return self._add("module name", name, qconfig)

    def set_module_name_regex(self, pattern: str, qconfig: Precision) -> QConfigMapping:
        """A rule for modules whose whole path matches a regular expression."""
        expect(_PATH, pattern=pattern)
        try:
            re.compile(pattern)
        except re.error as error:
            raise PlanError(f"{pattern!r} is not a regular expression: {error}") from None
        return self._add("module name regex", pattern, qconfig)

    def rule_for(self, node: Node) -> Rule | None:
        """The rule that decides on this node; ``None`` where no rule matches."""
        matching = [
            (_PRECEDENCE.index(rule.kind), len(rule.pattern), index, rule)
            for index, rule in enumerate(self.rules)
            if rule.matches(node)
        ]
        return max(matching, key=lambda item: item[:3])[3] if matching else None

    def with_floats(self, nodes: Iterable[Node]) -> QConfigMapping:
        """These rules, and nodes of the graph that stay float unless one of these is about them."""
        ruled = ((node, self.rule_for(node)) for node in nodes)
        free = [node.name for node, rule in ruled if rule is None or rule.kind == "global"]
        return QConfigMapping([*self.rules, *(Rule("node", name, None) for name in free)])

    def within(self, path: str) -> QConfigMapping:
        """The rules for the graph of one module of the model: what they say of it, and of all
        inside of it.
        """
        rules = [replace(rule, inside=path) for rule in self.rules if rule.concerns(path)]
        return QConfigMapping(rules)

    def _add(self, kind: str, pattern: str, qconfig: Precision) -> QConfigMapping:
        if qconfig is not None and not isinstance(qconfig, QConfig | torch.dtype):
            raise PlanError(
                f"the qconfig for {kind} {pattern!r} is a {type(qconfig).__name__}; "
                "give a QConfig, torch.bfloat16, or None to keep float"
            )
        if isinstance(qconfig, torch.dtype) and qconfig != torch.bfloat16:
            raise PlanError(
                f"the rule {kind} {pattern!r} asks for {qconfig}: layers compute in float32 "
                "(None), in torch.bfloat16, or as a QConfig says"
            )
        self.rules.append(Rule(kind, pattern, qconfig))
        return self


def mapping_of(qconfig: QConfig | QConfigMapping | None) -> QConfigMapping | None:
    """The rules: one `QConfig` holds for all layers."""
    optional(_QCONFIG, qconfig=qconfig)
    return QConfigMapping().set_global(qconfig) if isinstance(qconfig, QConfig) else qconfig


def _to_qconfig(value: Any) -> str:
    if isinstance(value, Scheme):
        return "a scheme is half of it: octavo.QConfig(activation=..., weight=octavo.QSpec(scheme))"
    if callable(value) and not isinstance(value, type):
        return f"call it, octavo.{getattr(value, '__name__', 'weight_only_qconfig')}()"
    return (
        "give a QConfig, such as octavo.weight_only_qconfig(4, group_size=32), or rules for parts, "
        'octavo.QConfigMapping().set_module_name("head", None); int8 on calibration data needs none'
    )


_QCONFIG = of(QConfig, QConfigMapping, way_out=_to_qconfig)


def mode_of(qconfig: QConfig | QConfigMapping | None, otherwise: str) -> str:
    """What one `QConfig` makes of a layer; a mapping leaves that open."""
    return qconfig.mode if isinstance(qconfig, QConfig) else otherwise
