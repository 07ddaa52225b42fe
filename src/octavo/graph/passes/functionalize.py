"""In-place operators become functional ones: ``y = relu_(x)`` is ``y = relu(x)``, and later reads
of ``x`` read ``y``.

That is right as long as no other value that shares memory with ``x`` is read later; where one is,
capture asks torch.export for its own, slower functionalization first.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.export import ExportedProgram

from octavo.errors import CaptureError
from octavo.graph.graph import Graph, Ref, map_refs
from octavo.graph.passes.training import DROPOUTS

# Results of these may share memory with their first argument, though their schema does not say so.
_ALIASING = DROPOUTS | {"getitem", "type_as"}


def is_safe(program: ExportedProgram) -> bool:
    """Whether `make_functional` keeps the meaning of every in-place operator of the program.

    Raises:
        CaptureError: neither it nor torch.export does.
    """
    kept = {**program.graph_signature.inputs_to_parameters}
    kept |= program.graph_signature.inputs_to_buffers
    kept |= program.graph_signature.inputs_to_lifted_tensor_constants
    root: dict[str, str] = {}
    last_read: dict[str, int] = {}
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    for node in order:
        last_read[node.name] = max((order[user] for user in node.users), default=-1)
        source = node.args[0] if node.args else None
        if not isinstance(source, torch.fx.Node):
            root[node.name] = node.name
            continue
        mutable = _is_mutable(node.target)
        if mutable and not _has_functional_twin(node.target):
            return False
        root[node.name] = root[source.name] if _aliases(node.target) else node.name
        if mutable and root[source.name] in kept:
            return False
    for node, index in order.items():
        if node.op == "call_function" and _is_mutable(node.target):
            written = node.args[0].name
            family = {
                name
                for name in root
                if root[name] == root[written] and name not in (written, node.name)
            }
            earlier = {n.name for n, i in order.items() if i < index}
            if any(last_read[name] > index for name in family & earlier):
                if any(_name(n.target) in DROPOUTS for n in order if n.name in family | {written}):
                    raise CaptureError(
                        f"{written!r} is changed in place, and may be the tensor that dropout was "
                        "given, which torch.export takes for another one: change a copy instead"
                    )
                return False
    return True


def _aliases(target: object) -> bool:
    """Whether the result may share memory with the first argument."""
    returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else []
    return _name(target) in _ALIASING or any(value.alias_info is not None for value in returns)


def _name(target: object) -> str:
    return getattr(target, "__name__", "").split(".")[0]


def _is_mutable(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _has_functional_twin(op: torch._ops.OpOverload) -> bool:
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return packet is not None and op._overloadname in packet.overloads()


def make_functional(graph: Graph) -> Graph:
    """Each ``aten.<name>_.<overload>`` replaced by ``aten.<name>.<overload>``."""
    current: dict[str, str] = {}

    def latest(name: str) -> str:
        while name in current:
            name = current[name]
        return name

    nodes = []
    for node in graph.nodes:
        node = node.renamed({name: latest(name) for name in node.refs()})
        namespace, _, rest = node.op.partition(".")
        name, _, overload = rest.partition(".")
        if namespace == "aten" and name.endswith("_"):
            written = next(iter(node.refs()))
            node = replace(node, op=f"aten.{name[:-1]}.{overload}")
            current[written] = node.name
        nodes.append(node)
    outputs = map_refs(graph.outputs, lambda ref: Ref(latest(ref.name)))
    return replace(graph, nodes=tuple(nodes), outputs=outputs)
