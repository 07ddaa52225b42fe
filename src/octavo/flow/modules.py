"""`quantize_modules`: layers become integers one by one, in a copy of the model that runs as it is
written.

Dynamic and weight-only quantization need neither data nor a graph, so that models with loops,
branches and methods of their own keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from octavo.arguments import TEXT, expect
from octavo.errors import NothingQuantized, PlanError, warn_user
from octavo.flow.blockwise.rotating import rotate
from octavo.flow.blockwise.rounding import round_modules
from octavo.flow.replacing import Decide, Decided, Decision, Replaced
from octavo.flow.running import Calls
from octavo.flow.settings import NEEDS_NO_GRAPH, Only, Settings
from octavo.graph.copying import copied
from octavo.graph.evaluation import evaluating
from octavo.graph.graph import Node
from octavo.model.language.decoding import with_native_steps
from octavo.model.language.saving import saved_by_transformers
from octavo.model.nn import QuantizedModule, quantized_form
from octavo.model.tree import near
from octavo.quantization.placement.node_qconfigs import qconfig_of
from octavo.quantization.qconfig import QConfigMapping, Rule, is_inside
from octavo.quantization.targets import Target
from octavo.quantization.targets import target as target_named
from octavo.quantization.weights import Rotation, Rounded


def quantize_modules(model: nn.Module, settings: Settings, calls: Calls | None = None) -> nn.Module:
    """Put quantized layers, of `octavo.nn`, in the places of float ones, without a graph.

    Args:
        model: any module. It is left as it was.
        settings: how. The mode is ``"dynamic"``: linear and recurrent layers find the scale of
            their input at each call; or ``"weight_only"``: their weights alone are integers. Tables
            have integers in both. Rules name modules, their classes or operators (``"linear"``,
            ``"conv2d"``); the target's default without. Convolutions become integers where a rule
            asks for it. ``only`` names modules with all inside of them.
        calls: of the model, for methods that measure inputs.

    Returns:
        A copy of the model, of the same class. Warns of layers that could have been quantized and
        were not, and of what is done about a weight that a layer shares with one that was not asked
        for; two that are asked for different integers hold their own each.

    Raises:
        PlanError: a rule names an unknown module, or asks for what needs a graph; or no layer would
            be quantized.

    Example:
        >>> net = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 4)).eval()
        >>> q = quantize_modules(net, Settings(mode="weight_only"))
        >>> type(q[1]), q(torch.tensor([[1, 2, 3]])).shape
        (<class 'octavo.model.nn.linear.Linear'>, torch.Size([1, 3, 4]))
    """
    replaced = quantized_modules(model, settings, calls)
    for remark in replaced.remarks():
        warn_user(remark)
    with_native_steps(replaced.model)
    saved_by_transformers(replaced.model)
    return replaced.model


def quantized_modules(model: nn.Module, settings: Settings, calls: Calls | None = None) -> Replaced:
    """`quantize_modules`, with an account of what was replaced, and why other layers were not."""
    asked = Asked.of(model, settings)
    own = copied(model)
    with evaluating(own):
        notes = rotate(own, settings.weights, calls)
    methods = [method for method in settings.weights if not isinstance(method, Rotation)]
    decided = Decided.of(own, asked.decide(own))
    decided.result.notes += notes
    rounded: Mapping[str, Rounded] = {}
    if methods and decided.qconfigs:
        with evaluating(own):
            done = round_modules(own, decided.qconfigs, replace(settings, weights=methods), calls)
        rounded = done.rounded
        decided.result.notes += done.notes
    replaced = decided.replace(settings.target, rounded=rounded)
    if not replaced.modules:
        raise nothing_quantized(model, replaced.left)
    return replaced


@dataclass(frozen=True)
class Asked:
    """What somebody wants of the layers of a model.

    Attributes:
        mode: ``"dynamic"`` or ``"weight_only"``.
        mapping: the rules.
        target: where it will run.
        chosen: path and module -> whether it is among those of ``only=``.
    """

    mode: str
    mapping: QConfigMapping
    target: Target
    chosen: Callable[[str, nn.Module], bool]

    @classmethod
    def of(cls, model: nn.Module, settings: Settings) -> Asked:
        """From the settings of `octavo.quantize`.

        Raises:
            PlanError: the mode needs a graph, or a rule or path names no module.
        """
        expect(TEXT, target=settings.target)
        mode, mapping = settings.mode, settings.mapping or QConfigMapping()
        if mode not in NEEDS_NO_GRAPH:
            raise PlanError(
                f"mode is {mode!r}; one of 'dynamic' and 'weight_only': a static scale needs data "
                "and the graph of a model or of a part of it"
            )
        known = target_named(settings.target)
        _check_rules(model, mapping)
        return cls(mode, mapping, known, _chosen(model, settings.only))

    def decide(self, model: nn.Module) -> Decide:
        """A function that says of each layer how it is quantized, or why it is not."""
        paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            paths.setdefault(module, []).append(path)

        def decide(path: str, module: nn.Module) -> Decision:
            names = paths[module]  # a shared module has several, and rules may name any
            if not any(self.chosen(name, module) for name in names):
                return "it is not among those of only="
            node, rule = _first_named(self.mapping, [_node(name, module) for name in names])
            if rule is not None and isinstance(rule.precision, torch.dtype):
                raise PlanError(
                    f"the rule {rule} asks for {rule.precision}, which needs a graph; modules "
                    "become integers or stay as they are (None): leave the rule out, or take "
                    'scope="model"'
                )
            wanted, why = qconfig_of(node, rule, self.target, self.mode)
            if wanted is None:
                return "" if why is None else why.words
            return wanted

        return decide


def nothing_quantized(model: nn.Module, left: Mapping[str, str]) -> NothingQuantized:
    """The error of a model of which no layer would be quantized.

    Args:
        model: the float model.
        left: path of a layer -> why it stays float.
    """
    if any(isinstance(module, QuantizedModule) for module in model.modules()):
        return NothingQuantized(
            "nothing is left to quantize: the model has quantized layers already; start from "
            "the float model"
        )
    reasons = sorted({f"{path!r}: {why}" for path, why in left.items()})
    return NothingQuantized(
        "nothing would be quantized: "
        f"{'; '.join(reasons[:4]) or f'a {type(model).__name__} has no layer with weights'}. "
        "octavo.nn has linear and recurrent layers, attention and tables; a rule asks for "
        'convolutions; scope="model" captures the model and finds products of matrices however '
        "they are written"
    )


def _first_named(mapping: QConfigMapping, nodes: Sequence[Node]) -> tuple[Node, Rule | None]:
    """By which name of a module its rule is found: one that a rule names, else the first."""
    rules = [(node, mapping.rule_for(node)) for node in nodes]
    named = (pair for pair in rules if pair[1] is not None and pair[1].kind.startswith("module n"))
    return next(named, rules[0])


def _node(path: str, module: nn.Module) -> Node:
    """A module as rules see it: its path, its class, and the operator that it is."""
    form = quantized_form(module)
    operator = "none" if form is None else form.operator
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return Node(path, f"aten.{operator}.default", module=path, module_type=kind)


def _check_rules(model: nn.Module, mapping: QConfigMapping) -> None:
    """Raise for a rule that names no module, warn of one that matches nothing.

    Raises:
        PlanError: it names the module.
    """
    nodes = [_node(path, module) for path, module in model.named_modules(remove_duplicate=False)]
    missing = [rule for rule in mapping.rules if not any(rule.matches(node) for node in nodes)]
    for rule in missing:
        if rule.kind == "module name":
            raise PlanError(
                f"no module is called {rule.pattern!r}, as a rule has it; "
                f"{near(rule.pattern, model)}"
            )
    unmatched = [rule for rule in missing if rule.kind != "global"]
    if unmatched:
        warn_user(f"rules that match no module of this model: {', '.join(map(str, unmatched))}")


def _chosen(model: nn.Module, only: Only | None) -> Callable[[str, nn.Module], bool]:
    """Whether a module is among those that were asked for.

    Raises:
        PlanError: there is no module of a path.
    """
    if only is None:
        return lambda path, module: True
    if callable(only):
        return only
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    for path in only:
        if path not in paths:
            raise PlanError(
                f"only= names {path!r}, which is no module of the model; {near(path, model)}"
            )
    # The path of the model itself is empty, and all is inside of it.
    return lambda path, module: "" in only or any(is_inside(path, one) for one in only)
