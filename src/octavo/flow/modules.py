"""`quantize_modules`: layers become integers one by one, in a copy of the model that runs as it is
written.

Dynamic and weight-only quantization need neither data nor a graph, so that models with loops,
branches and methods of their own keep them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from octavo.arguments import TEXT, expect
from octavo.errors import NothingQuantized, PlanError, warn_user
from octavo.flow.blockwise.rounding import round_modules
from octavo.flow.replacing import Decided, Decision, Replaced
from octavo.flow.running import Calls
from octavo.graph.copying import copied
from octavo.graph.evaluation import evaluating
from octavo.graph.graph import Node
from octavo.model.nn import QuantizedModule, quantized_form
from octavo.model.tree import near
from octavo.quantization.placement.node_qconfigs import qconfig_of
from octavo.quantization.qconfig import (
    QConfig,
    QConfigMapping,
    Rule,
    is_inside,
    mapping_of,
    mode_of,
)
from octavo.quantization.targets import MODES
from octavo.quantization.targets import target as target_named
from octavo.quantization.weights import WeightMethod

Only = Iterable[str] | Callable[[str, nn.Module], bool]


def quantize_modules(
    model: nn.Module,
    *,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str = "x86",
    only: Only | None = None,
    weights: Sequence[WeightMethod] = (),
    calls: Calls | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Put quantized layers, of `octavo.nn`, in the places of float ones; without data or a graph.

    Args:
        model: any module. It is left as it was.
        mode: ``"dynamic"``: linear and recurrent layers find the scale of their input at each call.
            ``"weight_only"``: their weights alone are integers. Without it what ``qconfig`` is,
            else dynamic. Tables have integers in both.
        qconfig: one `QConfig` for all layers, or a `QConfigMapping`, whose rules name modules,
            their classes or operators (``"linear"``, ``"conv2d"``); the target's default without.
            Convolutions become integers where a rule asks for it.
        target: where the model will run, see `octavo.targets`.
        only: the paths of modules to quantize, with all inside of them, or a function of path and
            module; all without.
        weights, checkpoint, progress: as `octavo.quantize` takes them.
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
        >>> q = quantize_modules(net, mode="weight_only")
        >>> type(q[1]), q(torch.tensor([[1, 2, 3]])).shape
        (<class 'octavo.model.nn.linear.Linear'>, torch.Size([1, 3, 4]))
    """
    replaced = quantized_modules(
        model,
        mode=mode,
        qconfig=qconfig,
        target=target,
        only=only,
        weights=weights,
        calls=calls,
        checkpoint=checkpoint,
        progress=progress,
    )
    for remark in replaced.remarks():
        warn_user(remark)
    return replaced.model


def quantized_modules(
    model: nn.Module,
    *,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str = "x86",
    only: Only | None = None,
    weights: Sequence[WeightMethod] = (),
    calls: Calls | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Replaced:
    """`quantize_modules`, with an account of what was replaced, and why other layers were not."""
    expect(TEXT, target=target)
    mode = mode or mode_of(qconfig, "dynamic")
    mapping = mapping_of(qconfig) or QConfigMapping()
    if mode not in MODES or mode == "static":
        raise PlanError(
            f"mode is {mode!r}; one of 'dynamic' and 'weight_only': a static scale needs data and "
            "the graph of a model or of a part of it"
        )
    known = target_named(target)
    _check_rules(model, mapping)
    chosen = _chosen(model, only)

    own = copied(model)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in own.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)

    def decide(path: str, module: nn.Module) -> Decision:
        names = paths[module]  # a shared module has several, and rules may name any
        if not any(chosen(name, module) for name in names):
            return "it is not among those of only="
        node, rule = _first_named(mapping, [_node(name, module) for name in names])
        if rule is not None and isinstance(rule.precision, torch.dtype):
            raise PlanError(
                f"the rule {rule} asks for {rule.precision}, which needs a graph; modules become "
                'integers or stay as they are (None): leave the rule out, or take scope="model"'
            )
        wanted, why = qconfig_of(node, rule, known, mode)
        if wanted is None:
            return "" if why is None else why.words
        return wanted

    decided = Decided.of(own, decide)
    rounded = {}
    if weights and decided.qconfigs:
        with evaluating(own):
            rounded = round_modules(
                own,
                decided.qconfigs,
                target,
                weights,
                calls,
                checkpoint=checkpoint,
                progress=progress,
            )
    replaced = decided.replace(target, rounded=rounded)
    if not replaced.modules:
        reasons = sorted({f"{path!r}: {why}" for path, why in replaced.left.items()})
        if any(isinstance(module, QuantizedModule) for module in model.modules()):
            raise NothingQuantized(
                "nothing is left to quantize: the model has quantized layers already; start from "
                "the float model"
            )
        raise NothingQuantized(
            "nothing would be quantized: "
            f"{'; '.join(reasons[:4]) or f'a {type(model).__name__} has no layer with weights'}. "
            "octavo.nn has linear and recurrent layers, attention and tables; a rule asks for "
            'convolutions; scope="model" captures the model and finds products of matrices however '
            "they are written"
        )
    return replaced


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
    wanted = [only] if isinstance(only, str) else list(only)
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    for path in wanted:
        if path not in paths:
            raise PlanError(
                f"only= names {path!r}, which is no module of the model; {near(path, model)}"
            )
    # The path of the model itself is empty, and all is inside of it.
    return lambda path, module: "" in wanted or any(is_inside(path, one) for one in wanted)
