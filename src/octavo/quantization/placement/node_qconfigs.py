"""How the user or the target wants each node."""

from __future__ import annotations

from octavo.errors import PlanError
from octavo.graph.graph import Node
from octavo.quantization.qconfig import QConfig, Rule
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import LOOKUP, ROLES, WEIGHTED, Target


def qconfig_of(
    node: Node, rule: Rule | None, target: Target, mode: str
) -> tuple[QConfig | None, Reason | None]:
    """How the user or the target wants a node, and why not at all if so."""
    op = node.short_op
    asked = None if rule is None else rule.precision
    if rule is not None and not isinstance(asked, QConfig):
        return None, Reason(ReasonKind.RULE, f"the rule {rule}")
    if op not in ROLES:
        return None, Reason(ReasonKind.NO_KERNEL, f"{op} has no quantized form")
    if rule is not None and isinstance(asked, QConfig) and rule.kind != "global":
        if asked.mode != "static" and ROLES[op] not in (WEIGHTED, LOOKUP):
            if rule.kind == "op type" and rule.pattern in (op, node.op):  # not a class around it
                raise PlanError(
                    f"the rule {rule} asks for {asked.mode} quantization, which {op} cannot "
                    "have: it has no weights; give it a static QConfig, or None"
                )
            words = f"{op} has no weights, the rule {rule} is {asked.mode}"
            return None, Reason(ReasonKind.NO_KERNEL, words)
        return asked, None
    qconfig = asked if isinstance(asked, QConfig) else target.default(mode)
    if op in target.operators.get(qconfig.mode, ()):
        return qconfig, None
    if qconfig.mode != "static" and ROLES[op] not in (WEIGHTED, LOOKUP):
        return None, Reason(ReasonKind.NO_KERNEL, "it has no weights")
    case = f"{qconfig.mode} on {target.name}".replace("_", "-")
    words = f"{op} is not quantized by default ({case}); a rule can ask for it"
    return None, Reason(ReasonKind.DEFAULT, words)


def is_fusable(node: Node, rule: Rule | None, target: Target, mode: str) -> bool:
    """Whether another kernel may take a node in, though none runs it alone."""
    qconfig = target.default(mode) if rule is None else rule.precision
    static = isinstance(qconfig, QConfig) and qconfig.mode == "static"
    return static and any(node.short_op in f.activations for f in target.fusions.values())
