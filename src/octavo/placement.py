"""Where int8 stands in a graph: which nodes run in int8, what is fused, who shares a scale.

The rules, which the runtimes rely on:

- A *weighted* layer runs in int8 wherever it can. A *computed* or *shared* operator does where it
  stands between int8 layers: something int8 makes an input of it, and something int8 reads its
  result. So there is no float island between two int8 layers, and nothing is quantized for nothing.
- A kernel's inner results are not quantized: convolution, addition and activation in one kernel
  round once.
- What nothing int8 reads is not quantized: the last layer returns float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.graph import Graph, Node, Ref, TensorMeta
from octavo.qconfig import QConfig, QConfigMapping, QSpec
from octavo.targets import SHARED, WEIGHTED, Target


@dataclass
class Placement:
    """What was decided, by name of value.

    Attributes:
        int8: nodes that run in int8, fused ones included.
        fused_into: inner node -> the node whose value its kernel returns.
        specs: values that are quantized.
        weights: int8 node -> its quantized constants.
        shares: value -> the value whose scale it has.
        reasons: every value -> why.
    """

    int8: set[str] = field(default_factory=set)
    fused_into: dict[str, str] = field(default_factory=dict)
    specs: dict[str, QSpec] = field(default_factory=dict)
    weights: dict[str, dict[str, QSpec]] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def runs_int8(self, node: str) -> bool:
        return node in self.int8


@dataclass(frozen=True)
class _Context:
    graph: Graph
    target: Target
    qconfigs: Mapping[str, QConfig | None]
    users: Mapping[str, list[Node]]
    metas: Mapping[str, TensorMeta | None]
    producers: Mapping[str, Node]
    outputs: frozenset[str]

    def activations(self, node: Node) -> list[str]:
        """The tensors (or lists of them) that a node reads and that are not constants."""
        return [name for name in dict.fromkeys(node.refs()) if self._is_activation(name)]

    def _is_activation(self, name: str) -> bool:
        if name in self.graph.constants:
            return False
        producer = self.producers.get(name)
        if producer is None or producer.meta is not None:
            return True
        return self.target.roles.get(producer.short_op) == SHARED  # a list of tensors, not a size

    def only_user(self, name: str) -> Node | None:
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def is_float(self, name: str) -> bool:
        meta = self.metas.get(name)
        return meta is None or meta.dtype == "float32"


def place(graph: Graph, mapping: QConfigMapping, target: Target) -> Placement:
    """Apply the rules of this module."""
    placement = Placement()
    qconfigs: dict[str, QConfig | None] = {}
    for node in graph.nodes:
        rule = mapping.rule_for(node)
        qconfigs[node.name] = target.qconfig if rule is None else rule.qconfig
        if rule is not None and rule.qconfig is None:
            placement.reasons[node.name] = f"float: the rule {rule}"
    context = _Context(
        graph,
        target,
        qconfigs,
        graph.users(),
        graph.metas(),
        {node.name: node for node in graph.nodes},
        frozenset(graph.output_names()),
    )
    candidates = _candidates(context, placement)
    candidates = _between_int8_layers(context, candidates, placement)
    _fuse(context, candidates, placement)
    _specify(context, placement)
    return placement


def _candidates(context: _Context, placement: Placement) -> set[str]:
    """Nodes that the target has a kernel for, and the user wants in int8."""
    candidates = set()
    for node in context.graph.nodes:
        if node.name in placement.reasons:
            continue
        obstacle = _obstacle(context, node)
        if obstacle is None:
            candidates.add(node.name)
        else:
            placement.reasons[node.name] = f"float: {obstacle}"
    return candidates


def _obstacle(context: _Context, node: Node) -> str | None:
    """Why a node cannot run in int8; ``None`` where it can."""
    role = context.target.roles.get(node.short_op)
    if node.meta is None and role != SHARED:
        return "its result is not a tensor"
    if not all(context.is_float(name) for name in (*context.activations(node), node.name)):
        return "its tensors are not float32"
    if role is None:
        fusable = any(node.short_op in ops for ops in context.target.fused_activations.values())
        return None if fusable else f"{node.short_op} has no int8 kernel for {context.target.name}"
    if role == WEIGHTED:
        weight = node.args[1]
        if not (isinstance(weight, Ref) and weight.name in context.graph.constants):
            return "its weight is not a constant"
        if node.op.endswith(".padding"):
            return 'its padding="same" differs between the sides'
    tensors = [arg for arg in node.args[:2] if isinstance(arg, Ref)]
    if node.short_op in ("add", "mul"):
        if len(tensors) != 2 or any(t.name in context.graph.constants for t in tensors):
            return "one of its operands is a constant"
        if node.kwargs.get("alpha", 1) != 1:
            return f"its alpha is {node.kwargs['alpha']}"
    return None


def _between_int8_layers(context: _Context, candidates: set[str], placement: Placement) -> set[str]:
    """Keep, of the computed, shared and activation nodes, those that stand between int8 layers."""
    roles = context.target.roles
    weighted = {n for n in candidates if roles.get(context.producers[n].short_op) == WEIGHTED}
    kept = set(candidates)
    while True:
        wanted: set[str] = set()
        for node in reversed(context.graph.nodes):
            if node.name in weighted:
                wanted.add(context.activations(node)[0])
            elif node.name in kept and node.name in wanted:
                wanted.update(context.activations(node))
        made: set[str] = set(weighted)
        for node in context.graph.nodes:
            inputs = context.activations(node)
            if node.name in kept and any(name in made for name in inputs):
                made.add(node.name)
        new = {n for n in kept if n in weighted or (n in wanted and n in made)}
        # An activation that no kernel runs alone is int8 only as part of another kernel.
        new = {n for n in new if n in weighted or _has_role_or_is_fusable(context, n, new)}
        if new == kept:
            return kept
        for name in kept - new:
            reason = "nothing after it runs in int8" if name not in wanted else "its input is float"
            placement.reasons[name] = f"float: {reason}"
        kept = new


def _has_role_or_is_fusable(context: _Context, name: str, kept: set[str]) -> bool:
    node = context.producers[name]
    if node.short_op in context.target.roles:
        return True
    before = context.producers.get(context.activations(node)[0])
    return before is not None and _takes_activation(context, before, node, kept)


def _takes_activation(context: _Context, before: Node, node: Node, kept: set[str]) -> bool:
    fusable = context.target.fused_activations.get(before.short_op, frozenset())
    alone = context.only_user(before.name) is node
    return before.name in kept and alone and node.short_op in fusable


def _fuse(context: _Context, kept: set[str], placement: Placement) -> None:
    """Join kernels: the later of two convolutions that an addition joins takes the addition."""
    float_activations = _float_tail(context, kept)
    placement.int8 = kept | float_activations
    claimed: set[str] = set()
    for node in reversed(context.graph.nodes):
        if node.name not in kept or context.target.roles.get(node.short_op) != WEIGHTED:
            continue
        chain = [node]
        after = context.only_user(node.name)
        if after is not None and _takes_addition(context, node, after, kept, claimed):
            claimed.add(after.name)
            chain.append(after)
        _extend_by_activation(context, chain, placement.int8)
        placement.fused_into |= {inner.name: chain[-1].name for inner in chain[:-1]}
    for node in context.graph.nodes:
        if node.name in kept and node.short_op == "add" and node.name not in claimed:
            chain = [node]
            _extend_by_activation(context, chain, placement.int8)
            placement.fused_into |= {inner.name: chain[-1].name for inner in chain[:-1]}


def _float_tail(context: _Context, kept: set[str]) -> set[str]:
    """Activations that a kernel applies itself though nothing int8 follows: its result is float."""
    roles = context.target.roles
    tail = set()
    for name in kept:
        node = context.producers[name]
        after = context.only_user(name)
        fusable = context.target.fused_activations.get(node.short_op, frozenset())
        if after is None or context.qconfigs[after.name] is None:
            continue
        if roles.get(node.short_op) == WEIGHTED and after.short_op in fusable:
            tail.add(after.name)
    return tail


def _extend_by_activation(context: _Context, chain: list[Node], int8: set[str]) -> None:
    after = context.only_user(chain[-1].name)
    if after is not None and after.name in int8:
        chain += [after] if _takes_activation(context, chain[-1], after, int8) else []


def _takes_addition(
    context: _Context, layer: Node, addition: Node, kept: set[str], claimed: set[str]
) -> bool:
    if addition.short_op != "add" or layer.short_op not in context.target.fused_addition:
        return False
    if addition.name not in kept or addition.name in claimed:
        return False
    operands = context.activations(addition)
    metas = [context.metas[name] for name in operands]
    return len(metas) == 2 and metas[0] == metas[1] and metas[0] is not None


def _specify(context: _Context, placement: Placement) -> None:
    """Which values are quantized, with which scheme, and which of them share one."""
    for node in context.graph.nodes:
        qconfig = context.qconfigs[node.name]
        weighted = context.target.roles.get(node.short_op) == WEIGHTED
        if node.name in placement.int8 and weighted and qconfig is not None:
            placement.weights[node.name] = {node.args[1].name: qconfig.weight}
    values = [i.name for i in context.graph.inputs] + [n.name for n in context.graph.nodes]
    for name in values:
        readers = [user.name for user in context.users[name] if user.name in placement.int8]
        producer = context.producers.get(name)
        is_tensor = producer is None or producer.meta is not None
        made_in_float = placement.reasons.get(name, "")
        if readers and is_tensor and name not in placement.fused_into:
            qconfig = context.qconfigs.get(name) or context.qconfigs[readers[0]]
            if qconfig is not None:
                placement.specs[name] = qconfig.activation
            reason = f"{readers[0]} reads it in int8"
            placement.reasons[name] = f"{made_in_float}; {reason}" if made_in_float else reason
        elif not made_in_float:
            leaves = name in context.outputs
            reason = "float: leaves the model" if leaves else "float: nothing int8 reads it"
            placement.reasons[name] = reason if is_tensor else "a size, or a list of tensors"
    _share(context, placement, values)
    if context.target.full_range is not None:
        _use_full_range(context, placement, context.target.full_range)


def _use_full_range(context: _Context, placement: Placement, full_range: QSpec) -> None:
    """Eight bits for tensors that no kernel reads which sums pairs of products in int16."""
    sharing: dict[str, list[str]] = {}
    for name in placement.specs:
        sharing.setdefault(placement.shares.get(name, name), []).append(name)
    for names in sharing.values():
        readers = [user for name in names for user in context.users[name]]
        default = all(placement.specs[name] == context.target.qconfig.activation for name in names)
        if default and not any(_sums_pairs(context, placement, reader) for reader in readers):
            for name in names:
                placement.specs[name] = full_range
                placement.reasons[name] += (
                    "; 8 bits: no kernel that sums pairs of products reads it"
                )


def _sums_pairs(context: _Context, placement: Placement, node: Node) -> bool:
    """Whether a kernel sums products of several inputs; depthwise convolution does not."""
    if node.name not in placement.weights:
        return False
    weight = context.graph.constants[node.args[1].name]
    groups = node.args[6] if node.short_op == "conv2d" and len(node.args) > 6 else 1
    return not (groups == weight.shape[0] and weight.shape[1] == 1)


def _share(context: _Context, placement: Placement, values: list[str]) -> None:
    """Join the inputs and the output of every shared operator to one scale, the first one's."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    order = {name: index for index, name in enumerate(values)}
    for node in context.graph.nodes:
        if node.name in placement.int8 and context.target.roles.get(node.short_op) == SHARED:
            for name in context.activations(node):
                first, second = sorted((lead(name), lead(node.name)), key=order.__getitem__)
                if first != second:
                    leader[second] = first
    for name in values:
        first = lead(name)
        if first != name and name in placement.specs:
            placement.shares[name] = first
            placement.specs[name] = placement.specs.get(first, placement.specs[name])
