"""Where integers stand in a graph: which nodes run on them, what is fused, who shares a scale.

The rules, which the runtimes rely on:

- A *weighted* layer is quantized wherever it can be. How, its qconfig says: with a static range it
  runs in int8; with a dynamic one it quantizes what it reads at each call and returns float;
  without any only its weights are integers. A *table* (embedding) has integers in every mode.
- A *product* of activations runs in int8 wherever it can be, as a static layer does.
- A *computed* or *shared* operator runs in int8 where it stands between static int8 layers:
  something int8 makes an input of it, something int8 reads its result, and nothing float does. So
  there is no float island between two int8 layers, nothing is quantized for nothing, and a sum that
  a float operator needs (the residual stream of a transformer) keeps its precision.
- A kernel's inner results are not quantized: convolution, addition and activation in one kernel
  round once.
- What nothing int8 reads is not quantized: the last layer returns float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.errors import PlanError
from octavo.graph import Graph, Node, Ref, TensorMeta
from octavo.qconfig import QConfig, QConfigMapping, QSpec, Rule
from octavo.targets import LOOKUP, PRODUCT, ROLES, SHARED, WEIGHTED, Target
from octavo.weighted import WEIGHTED_LAYERS, WeightedLayer

# What a computed operator reads in int8 where that is not all of its tensors: the first so many.
_READS = {
    "scaled_dot_product_attention": 3,
    **dict.fromkeys("prelu batch_norm layer_norm group_norm instance_norm rms_norm".split(), 1),
}
_ELEMENTWISE = ("add", "sub", "mul")


@dataclass
class Placement:
    """What was decided, by name of value.

    Attributes:
        int8: nodes that run in static int8, fused ones included.
        dynamic: nodes that quantize what they read at each call -> how.
        weight_only: nodes of which only the weights are quantized.
        fused_into: inner node -> the node whose value its kernel returns.
        specs: values that are quantized.
        weights: quantized node -> its quantized constants.
        shares: value -> the value whose scale it has.
        reasons: every value -> why.
    """

    int8: set[str] = field(default_factory=set)
    dynamic: dict[str, QSpec] = field(default_factory=dict)
    weight_only: set[str] = field(default_factory=set)
    fused_into: dict[str, str] = field(default_factory=dict)
    specs: dict[str, QSpec] = field(default_factory=dict)
    weights: dict[str, dict[str, QSpec]] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def runs(self, node: str) -> str:
        """``"int8"``, ``"dynamic"``, ``"weight-only"`` or ``"float"``."""
        if node in self.int8:
            return "int8"
        if node in self.dynamic:
            return "dynamic"
        return "weight-only" if node in self.weight_only else "float"


@dataclass(frozen=True)
class _Context:
    graph: Graph
    target: Target
    qconfigs: Mapping[str, QConfig | None]
    users: Mapping[str, list[Node]]
    metas: Mapping[str, TensorMeta | None]
    producers: Mapping[str, Node]
    outputs: frozenset[str]

    def reads(self, node: Node) -> list[str]:
        """The tensors (or lists of them) that a node would read in int8."""
        layer = WEIGHTED_LAYERS.get(node.short_op)
        if layer is not None:
            source = None if layer.input is None else node.args[layer.input]
            is_read = isinstance(source, Ref) and source.name not in self.graph.constants
            return [source.name] if is_read else []  # type: ignore[union-attr]
        names = [name for name in dict.fromkeys(node.refs()) if self._is_activation(name)]
        return names[: _READS.get(node.short_op)]

    def _is_activation(self, name: str) -> bool:
        if name in self.graph.constants:
            return False
        producer = self.producers.get(name)
        if producer is None or producer.meta is not None:
            return True
        return ROLES.get(producer.short_op) == SHARED  # a list of tensors, not a size

    def is_layer(self, name: str) -> bool:
        """Whether int8 saves so much that a node runs in it whatever stands around it."""
        return ROLES.get(self.producers[name].short_op) in (WEIGHTED, PRODUCT)

    def only_user(self, name: str) -> Node | None:
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def is_float(self, name: str) -> bool:
        meta = self.metas.get(name)
        return meta is None or meta.dtype == "float32"

    def runs_alone(self, node: Node) -> bool:
        """Whether the user or the target's default wants a kernel of its own for this operator."""
        return node.short_op in ROLES and self.qconfigs[node.name] is not None


def place(graph: Graph, mapping: QConfigMapping, target: Target, mode: str) -> Placement:
    """Apply the rules of this module.

    Raises:
        PlanError: a rule asks for a mode that an operator cannot have.
    """
    placement = Placement()
    qconfigs: dict[str, QConfig | None] = {}
    for node in graph.nodes:
        rule = mapping.rule_for(node)
        qconfig, reason = _qconfig_of(node, rule, target, mode)
        qconfigs[node.name] = qconfig
        if reason and not _is_fusable(node, rule, target, mode):
            placement.reasons[node.name] = f"float: {reason}"
    context = _Context(
        graph,
        target,
        qconfigs,
        graph.users(),
        graph.metas(),
        {node.name: node for node in graph.nodes},
        frozenset(graph.output_names()),
    )
    _place_without_ranges(context, placement)
    candidates = _candidates(context, placement)
    candidates = _between_int8_layers(context, candidates, placement)
    _fuse(context, candidates, placement)
    _specify(context, placement)
    return placement


def _qconfig_of(
    node: Node, rule: Rule | None, target: Target, mode: str
) -> tuple[QConfig | None, str]:
    """How the user or the target wants a node, and why not at all if so."""
    op = node.short_op
    if rule is not None and rule.qconfig is None:
        return None, f"the rule {rule}"
    if op not in ROLES:
        return None, f"{op} has no quantized form"
    if rule is not None and rule.kind != "global":
        assert rule.qconfig is not None
        if rule.qconfig.mode != "static" and ROLES[op] not in (WEIGHTED, LOOKUP):
            if rule.kind == "op type":
                raise PlanError(
                    f"the rule {rule} asks for {rule.qconfig.mode} quantization, which {op} cannot "
                    "have: it has no weights; give it a static QConfig, or None"
                )
            return None, f"{op} has no weights, the rule {rule} is {rule.qconfig.mode}"
        return rule.qconfig, ""
    qconfig = target.qconfigs[mode] if rule is None else rule.qconfig
    assert qconfig is not None
    if op in target.operators[qconfig.mode]:
        return qconfig, ""
    if qconfig.mode != "static" and ROLES[op] not in (WEIGHTED, LOOKUP):
        return None, "it has no weights"
    words = f"{qconfig.mode} on {target.name}".replace("_", "-")
    return None, f"{op} is not quantized by default ({words}); a rule can ask for it"


def _is_fusable(node: Node, rule: Rule | None, target: Target, mode: str) -> bool:
    """Whether another kernel may take a node in, though none runs it alone."""
    qconfig = target.qconfigs[mode] if rule is None else rule.qconfig
    static = qconfig is not None and qconfig.mode == "static"
    return static and any(node.short_op in ops for ops in target.fused_activations.values())


def _place_without_ranges(context: _Context, placement: Placement) -> None:
    """Tables, and layers that are dynamic or weight-only: nothing else is decided with them."""
    for node in context.graph.nodes:
        qconfig = context.qconfigs[node.name]
        role = ROLES.get(node.short_op)
        if qconfig is None or role not in (WEIGHTED, LOOKUP):
            continue
        if role == WEIGHTED and qconfig.mode == "static":
            continue
        obstacle = _obstacle(context, node)
        if obstacle is not None:
            placement.reasons[node.name] = f"float: {obstacle}"
        elif role == WEIGHTED and qconfig.mode == "dynamic":
            assert qconfig.activation is not None
            placement.dynamic[node.name] = qconfig.activation
            placement.reasons[node.name] = "float: its kernel quantizes its input at each call"
        else:
            placement.weight_only.add(node.name)
            placement.reasons[node.name] = "float: its weights are dequantized where they are used"


def _candidates(context: _Context, placement: Placement) -> set[str]:
    """Nodes that can run in static int8, and that the user or the target's default wants so."""
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
    """Why a node cannot be quantized; ``None`` where it can."""
    role = ROLES.get(node.short_op)
    if role in (WEIGHTED, LOOKUP):
        return _obstacle_of_layer(context, node)
    if node.meta is None and role != SHARED:
        return "its result is not a tensor"
    reads = context.reads(node)
    if not reads:
        return "nothing that it reads is quantized"
    if not all(context.is_float(name) for name in (*reads, node.name)):
        return "its tensors are not float32"
    if node.short_op in _ELEMENTWISE:
        tensors = [arg for arg in node.args[:2] if isinstance(arg, Ref)]
        if len(tensors) != 2 or any(t.name in context.graph.constants for t in tensors):
            return "one of its operands is a constant"
        if node.kwargs.get("alpha", 1) != 1:
            return f"its alpha is {node.kwargs['alpha']}"
    if node.short_op in ("pad", "constant_pad_nd") and _pads_with_something(node):
        return "it pads with another value than zero"
    return None


def _obstacle_of_layer(context: _Context, node: Node) -> str | None:
    layer = WEIGHTED_LAYERS[node.short_op]
    weights = layer.weights_of(node, context.graph.constants)
    if not weights:
        return "its weight is not a constant"
    if not all(context.graph.constants[name].dtype.is_floating_point for name in weights):
        return "its weights are not float"
    if not all(context.is_float(name) for name in (*context.reads(node), node.name)):
        return "its tensors are not float32"
    if not context.reads(node) and layer.input is not None:
        return "its input is a constant"
    if node.op.endswith(".padding"):
        return 'its padding="same" differs between the sides'
    qconfig = context.qconfigs[node.name]
    group_size = None if qconfig is None else qconfig.weight.scheme.group_size
    for name in weights:
        shape = list(context.graph.constants[name].shape)
        if group_size is not None and (len(shape) != 2 or shape[1] % group_size):
            return f"group_size {group_size} does not divide its weight {name} of shape {shape}"
    return None


def _pads_with_something(node: Node) -> bool:
    """Zero is exact in every scheme, and what reflects or repeats makes no new value."""
    if node.short_op == "pad":
        mode, value = (
            (*node.args[2:], "constant", None)[:2] if len(node.args) < 4 else node.args[2:]
        )
        return mode == "constant" and bool(value)
    return bool(node.args[2]) if len(node.args) > 2 else False


def _between_int8_layers(context: _Context, candidates: set[str], placement: Placement) -> set[str]:
    """Keep, of the computed, shared and activation nodes, those that stand between int8 layers."""
    weighted = {name for name in candidates if context.is_layer(name)}
    kept = set(candidates)
    while True:
        wanted: set[str] = set()
        for node in reversed(context.graph.nodes):
            if node.name in weighted or (node.name in kept and node.name in wanted):
                wanted.update(context.reads(node))
        made: set[str] = set(weighted)
        for node in context.graph.nodes:
            inputs = context.reads(node)
            if node.name in kept and any(name in made for name in inputs):
                made.add(node.name)
        read_in_float = {n: _float_reader(context, n, kept) for n in kept - weighted}
        new = {
            n
            for n in kept
            if n in weighted or (n in wanted and n in made and read_in_float[n] is None)
        }
        # An activation that no kernel runs alone is int8 only as part of another kernel.
        new = {n for n in new if n in weighted or _runs_alone_or_is_fused(context, n, new)}
        if new == kept:
            return kept
        for name in kept - new:
            if name not in wanted:
                reason = "nothing after it runs in int8"
            elif name not in made:
                reason = "its input is float"
            elif read_in_float[name] is not None:
                reason = f"{read_in_float[name]} reads it in float"
            else:
                op = context.producers[name].short_op
                reason = f"{op} runs in int8 only fused behind another layer, unless a rule asks"
            placement.reasons[name] = f"float: {reason}"
        kept = new


def _float_reader(context: _Context, name: str, kept: set[str]) -> str | None:
    """A float operator that reads a value, and not only its sizes."""
    for user in context.users[name]:
        sizes_only = user.meta is None and ROLES.get(user.short_op) != SHARED
        if user.name not in kept and not sizes_only:
            return user.name
    return None


def _runs_alone_or_is_fused(context: _Context, name: str, kept: set[str]) -> bool:
    node = context.producers[name]
    if context.runs_alone(node):
        return True
    before = context.producers.get(context.reads(node)[0])
    return before is not None and _takes_activation(context, before, node, kept)


def _takes_activation(context: _Context, before: Node, node: Node, kept: set[str]) -> bool:
    fusable = context.target.fused_activations.get(before.short_op, frozenset())
    alone = context.only_user(before.name) is node
    return before.name in kept and alone and node.short_op in fusable


def _fuse(context: _Context, kept: set[str], placement: Placement) -> None:
    """Join kernels: the later of two convolutions that an addition joins takes the addition."""
    float_activations = _float_tail(context, kept, placement)
    placement.int8 = kept | float_activations
    claimed: set[str] = set()
    for node in reversed(context.graph.nodes):
        if node.name not in kept or not context.is_layer(node.name):
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


def _float_tail(context: _Context, kept: set[str], placement: Placement) -> set[str]:
    """Activations that a kernel applies itself though nothing int8 follows: its result is float."""
    tail = set()
    for name in kept:
        node = context.producers[name]
        after = context.only_user(name)
        fusable = context.target.fused_activations.get(node.short_op, frozenset())
        if after is None or placement.reasons.get(after.name, "").startswith("float: the rule"):
            continue
        if context.is_layer(name) and after.short_op in fusable:
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
    operands = context.reads(addition)
    metas = [context.metas[name] for name in operands]
    return len(metas) == 2 and metas[0] == metas[1] and metas[0] is not None


def _specify(context: _Context, placement: Placement) -> None:
    """Which values are quantized, with which scheme, and which of them share one."""
    for node in context.graph.nodes:
        qconfig = context.qconfigs[node.name]
        layer = WEIGHTED_LAYERS.get(node.short_op)
        if layer is not None and qconfig is not None and placement.runs(node.name) != "float":
            names = layer.weights_of(node, context.graph.constants)
            spec = _weight_of(context, node, layer, qconfig.weight)
            placement.weights[node.name] = dict.fromkeys(names, spec)
    values = [i.name for i in context.graph.inputs] + [n.name for n in context.graph.nodes]
    for name in values:
        readers = [
            user.name
            for user in context.users[name]
            if user.name in placement.int8 and name in context.reads(user)
        ]
        producer = context.producers.get(name)
        is_tensor = producer is None or producer.meta is not None
        made_in_float = placement.reasons.get(name, "")
        if readers and is_tensor and name not in placement.fused_into:
            placement.specs[name] = _activation_of(context, name, readers)
            reason = f"{readers[0]} reads it in int8"
            placement.reasons[name] = f"{made_in_float}; {reason}" if made_in_float else reason
        elif not made_in_float:
            leaves = name in context.outputs
            reason = "float: leaves the model" if leaves else "float: nothing int8 reads it"
            placement.reasons[name] = reason if is_tensor else "a size, or a list of tensors"
    _share(context, placement, values)


def _activation_of(context: _Context, name: str, readers: list[str]) -> QSpec:
    """The spec of a value: its maker's if that is static, else that of the first who reads it."""
    producer = context.producers.get(name)
    makers = [name, *readers] if producer is not None else readers
    for node in makers:
        qconfig = context.qconfigs[node]
        if qconfig is not None and qconfig.mode == "static":
            assert qconfig.activation is not None
            fixed = context.target.fixed_outputs.get(producer.short_op if producer else "")
            default = context.target.qconfig.activation
            assert default is not None
            by_default = qconfig.activation.scheme == default.scheme
            return fixed if fixed is not None and by_default else qconfig.activation
    # A fused activation that no rule names: the layer's before it, which is the target's default.
    default_spec = context.target.qconfig.activation
    assert default_spec is not None
    return default_spec


def _weight_of(context: _Context, node: Node, layer: WeightedLayer, given: QSpec) -> QSpec:
    """The spec of a layer's weights, with one scale for each of its output channels if for any."""
    default = context.target.qconfig.weight
    without_pairs = context.target.weight_without_pairs
    if without_pairs is not None and given == default and not _sums_pairs(context, node, layer):
        given = without_pairs
    if given.scheme.channel_axis is None:
        return given
    return replace(given, scheme=replace(given.scheme, channel_axis=layer.output_axis))


def _sums_pairs(context: _Context, node: Node, layer: WeightedLayer) -> bool:
    """Whether an int8 kernel sums products of several inputs; depthwise convolution does not."""
    if layer.input_axis is None:
        return False
    weight = context.graph.constants[node.args[1].name]
    return not (layer.groups_of(node) == weight.shape[0] and weight.shape[1] == 1)


def _share(context: _Context, placement: Placement, values: list[str]) -> None:
    """Join the inputs and the output of every shared operator to one scale, the first one's."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    order = {name: index for index, name in enumerate(values)}
    for node in context.graph.nodes:
        if node.name in placement.int8 and ROLES.get(node.short_op) == SHARED:
            for name in context.reads(node):
                first, second = sorted((lead(name), lead(node.name)), key=order.__getitem__)
                if first != second:
                    leader[second] = first
    for name in values:
        first = lead(name)
        if first != name and name in placement.specs:
            placement.shares[name] = first
            placement.specs[name] = placement.specs.get(first, placement.specs[name])
