"""Which layers are quantized, and how: from the qconfigs of modules, or from a mapping.

Both kinds of rules answer the same two questions: how is this module quantized by itself, and
what is the `octavo.QConfigMapping` of this graph?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.compat.quantization.qconfig import common_target, native
from octavo.compat.quantization.qconfig_mapping import QConfigMapping
from octavo.compat.quantization.stubs import DeQuantStub, QuantStub
from octavo.errors import PlanError
from octavo.graph.graph import Graph, Node
from octavo.quantization.qconfig import QConfig
from octavo.quantization.qconfig import QConfigMapping as NativeMapping
from octavo.quantization.targets import target as target_named


@dataclass(frozen=True)
class EagerRules:
    """The qconfigs that modules carry, each with its path.

    Attributes:
        qconfigs: path -> qconfig, for every module.
        target: name of the target.
        given: the same as they were written.
    """

    qconfigs: Mapping[str, QConfig | None]
    target: str
    given: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, training: bool) -> EagerRules:
        """Read a model; a module without a qconfig has that of the module around it.

        Raises:
            PlanError: no module has one, or static quantization finds no stubs.
        """
        given = dict(_propagated(model, "", None))
        target = common_target(given.values())
        distinct = {id(q): q for q in given.values()}
        native_of = {key: native(q, target, training) for key, q in distinct.items()}
        qconfigs = {path: native_of[id(qconfig)] for path, qconfig in given.items()}
        rules = cls(qconfigs, target, given)
        if not rules.modes:
            raise PlanError(
                "no module has a qconfig: set model.qconfig = get_default_qconfig('x86'), or call "
                "octavo.quantize(model, calibration=loader), which needs none"
            )
        if rules.modes == {"static"} and not any(isinstance(m, QuantStub) for m in model.modules()):
            raise PlanError(
                "the model has no QuantStub, so that nothing says where integers begin: wrap it, "
                "QuantWrapper(model), or call octavo.quantize(model, calibration=loader), which "
                "needs no stubs"
            )
        return rules

    @property
    def modes(self) -> set[str]:
        """The modes of all qconfigs."""
        return {qconfig.mode for qconfig in self.qconfigs.values() if qconfig is not None}

    def refuse_changes(self, model: nn.Module) -> None:
        """Raise where a qconfig has changed since the model was prepared.

        Raises:
            PlanError: it names the module.
        """
        for path, qconfig in _propagated(model, "", None):
            if path in self.given and repr(qconfig) != repr(self.given[path]):
                raise PlanError(
                    f"the qconfig of {path or 'the model'!r} has changed since prepare, which "
                    "decides by it: set it before, and prepare the float model again"
                )

    def of_module(self, path: str, module: nn.Module) -> QConfig | None:
        """How a module is quantized by itself."""
        return self.qconfigs.get(path)

    def of_graph(self, traced: Graph, canonical: Graph, model: nn.Module) -> NativeMapping:
        """The mapping: static layers stand between the stubs, others anywhere.

        Args:
            traced: the graph as it was traced, with the stubs.
            canonical: the same graph as it is planned.
            model: the float model.
        """
        inside = _between_stubs(traced, model)
        static = [q for q in self.qconfigs.values() if q is not None and q.mode == "static"]
        usual = static[0] if static else None
        mapping = NativeMapping().set_global(usual)
        for node in canonical.nodes:
            qconfig = self._of_node(node)
            if qconfig is not None and qconfig.mode == "static" and node.name not in inside:
                qconfig = None
            by_default = qconfig is None or (
                node.short_op in target_named(self.target).operators[qconfig.mode]
            )
            if qconfig != usual and by_default:
                mapping.set_module_name(node.name, qconfig)
        return mapping

    def _of_node(self, node: Node) -> QConfig | None:
        path = node.module
        while path and path not in self.qconfigs:
            path = path.rpartition(".")[0]
        return self.qconfigs.get(path)


@dataclass(frozen=True)
class MappingRules:
    """The rules of FX mode.

    Attributes:
        mapping: what the user wrote, as Octavo has it.
        target: name of the target.
    """

    mapping: NativeMapping
    target: str

    @classmethod
    def of(cls, mapping: QConfigMapping, training: bool) -> MappingRules:
        """From the user's mapping."""
        return cls(mapping.native(training), common_target(mapping.qconfigs()))

    def refuse_changes(self, model: nn.Module) -> None:
        """A mapping was given, and stays: modules have no say."""

    @property
    def modes(self) -> set[str]:
        """The modes of all qconfigs."""
        return {
            rule.precision.mode
            for rule in self.mapping.rules
            if isinstance(rule.precision, QConfig)
        }

    def of_module(self, path: str, module: nn.Module) -> QConfig | None:
        """How a module is quantized by itself."""
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        rule = self.mapping.rule_for(Node(path, "python.none", module=path, module_type=kind))
        precision = None if rule is None else rule.precision
        return precision if isinstance(precision, QConfig) else None

    def of_graph(self, traced: Graph, canonical: Graph, model: nn.Module) -> NativeMapping:
        """The mapping, without rules for modules that left nothing in the graph."""
        paths = {path for path, _ in model.named_modules()}
        rules = [
            rule
            for rule in self.mapping.rules
            if rule.kind != "module name"
            or rule.pattern not in paths
            or (rule.pattern and any(rule.matches(node) for node in canonical.nodes))
        ]
        return NativeMapping(rules)


Rules = EagerRules | MappingRules


def _propagated(module: nn.Module, path: str, around: Any) -> Iterator[tuple[str, Any]]:
    qconfig = getattr(module, "qconfig", around)
    yield path, qconfig
    for name, child in module.named_children():
        yield from _propagated(child, f"{path}.{name}".lstrip("."), qconfig)


def read_by_stubs(traced: Graph, model: nn.Module) -> dict[str, str]:
    """Tensor -> path of the QuantStub that reads it."""
    stubs = {path for path, module in model.named_modules() if isinstance(module, QuantStub)}
    return {node.args[0].name: node.module for node in traced.nodes if node.module in stubs}


def _between_stubs(traced: Graph, model: nn.Module) -> set[str]:
    """The nodes that a value from a QuantStub reaches with no DeQuantStub before."""
    kinds = {path: type(module) for path, module in model.named_modules()}
    inside: set[str] = set()
    for node in traced.nodes:
        kind = kinds.get(node.module, nn.Module)
        begins = issubclass(kind, QuantStub)
        if begins or (
            not issubclass(kind, DeQuantStub) and any(name in inside for name in node.refs())
        ):
            inside.add(node.name)
    return inside
