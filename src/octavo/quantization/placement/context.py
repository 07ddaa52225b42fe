"""What the rules look at: the graph, the target, and what is wanted of each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.graph.graph import Graph, Node, Ref, refs_in
from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.quantization.fusions import NOTHING, Fusion
from octavo.quantization.qconfig import QConfig
from octavo.quantization.targets import PRODUCT, ROLES, SHARED, WEIGHTED, Target

# What a computed operator reads in int8 where that is not all of its tensors: so many arguments.
_READS = {
    "scaled_dot_product_attention": 3,
    **dict.fromkeys("prelu batch_norm layer_norm group_norm instance_norm rms_norm".split(), 1),
}


@dataclass(frozen=True)
class Context:
    """One graph, the target, and what the user or the target's default wants of each node.

    Attributes:
        graph: canonical, float.
        target: where it will run.
        qconfigs: node -> how it is wanted; ``None`` in float.
    """

    graph: Graph
    target: Target
    qconfigs: Mapping[str, QConfig | None]

    def reads(self, node: Node) -> list[str]:
        """The tensors (or lists of them) that a node would read in int8."""
        layer = WEIGHT_LAYOUTS.get(node.short_op)
        if layer is not None:
            source = None if layer.input is None else arguments(node)[layer.input]
            is_read = isinstance(source, Ref) and source.name not in self.graph.constants
            return [source.name] if is_read else []  # type: ignore[union-attr]
        operands = self.target.operands.get(node.short_op)
        first = _READS.get(node.short_op) if operands is None else operands.count
        read = node.refs() if first is None else refs_in(node.args[:first])
        return [name for name in dict.fromkeys(read) if self._is_activation(name)]

    def _is_activation(self, name: str) -> bool:
        if name in self.graph.constants:
            return False
        producer = self.graph.by_name.get(name)
        if producer is None or producer.meta is not None:
            return True
        return ROLES.get(producer.short_op) == SHARED  # a list of tensors, not a size

    def is_layer(self, name: str) -> bool:
        """Whether int8 saves so much that a node runs in it whatever stands around it."""
        return ROLES.get(self.graph.by_name[name].short_op) in (WEIGHTED, PRODUCT)

    def is_float(self, name: str) -> bool:
        """Whether a value is float32, or no tensor."""
        meta = self.graph.metas.get(name)
        return meta is None or meta.dtype == "float32"

    def fusion(self, node: Node) -> Fusion:
        """What the kernel of a node takes in behind it."""
        return self.target.fusions.get(node.short_op, NOTHING)

    def runs_alone(self, node: Node) -> bool:
        """Whether the user or the target's default wants a kernel of its own for this operator."""
        return node.short_op in ROLES and self.qconfigs[node.name] is not None
