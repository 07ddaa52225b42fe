"""The graph: a model as a list of named operator calls.

A graph is a value. Passes take one and return another; nothing is changed in place. Every name in
it (of an input, a constant or a node) is the name of one tensor, made from the user's module path,
and the same name is used in plans, tables, errors and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import of
from octavo.errors import OctavoError
from octavo.graph.records import Record, kind_of
from octavo.graph.size_guards import Guard


@dataclass(frozen=True, slots=True)
class Ref:
    """The use of a tensor (or other value) by its name."""

    name: str


# None, bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, Ref,
# or a list or tuple of these.
Arg = Any


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Shape (``None`` where it varies) and dtype name (``"float32"``) of a tensor."""

    shape: tuple[int | None, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorMeta:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def fits(self, declared: TensorMeta) -> bool:
        """Whether this is what was declared, where a size may be left open."""
        return (
            self.dtype == declared.dtype
            and len(self.shape) == len(declared.shape)
            and all(d in (None, s) for d, s in zip(declared.shape, self.shape, strict=True))
        )

    def __str__(self) -> str:
        """The first open size is an N; a tensor knows no names for others."""
        sizes = ["?" if size is None else str(size) for size in self.shape]
        return f"{self.dtype}[{', '.join(sizes).replace('?', BATCH, 1)}]"


BATCH = "N"  # what the size of the batch is called, unless the user has a name for it
# What users call it.
BATCH_NAMES = (BATCH, "batch", "batch_size")


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that the caller gives.

    Attributes:
        name: of its value in the graph.
        meta: its shape and dtype.
        example: its shape when the model was captured.
        seen: the least and the largest value of the data that it was calibrated or captured with;
            ``None`` where that is not known.
        axes: what its open sizes are called; sizes of one name are equal. ``""`` for a fixed one.
    """

    name: str
    meta: TensorMeta
    example: tuple[int, ...] | None = None
    seen: tuple[float, float] | None = None
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.meta.shape):  # as of files of before sizes had names
            names = {a: f"{self.name}_{a}" if a else BATCH for a in self._open()}
            object.__setattr__(self, "axes", self._named(names))

    def with_axes(self, names: Mapping[int, str]) -> Input:
        """The input whose open sizes have these names, by axis."""
        return replace(self, axes=self._named(names))

    def _named(self, names: Mapping[int, str]) -> tuple[str, ...]:
        return tuple(names.get(axis, "") for axis in range(len(self.meta.shape)))

    def _open(self) -> list[int]:
        return [axis for axis, size in enumerate(self.meta.shape) if size is None]

    @property
    def batch_axis(self) -> int | None:
        """The axis of the batch; ``None`` if that is fixed, or there is none."""
        return next((axis for axis, name in enumerate(self.axes) if name in BATCH_NAMES), None)

    def __str__(self) -> str:
        """dtype and sizes, by their names where they are open: ``"int64[N, length]"``."""
        sizes = zip(self.axes, self.meta.shape, strict=True)
        return f"{self.meta.dtype}[{', '.join(name or str(size) for name, size in sizes)}]"

    @property
    def sizes(self) -> tuple[int, ...]:
        """A shape that the graph can run on: the example's, or two where a size varies."""
        return self.example or tuple(2 if size is None else size for size in self.meta.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call; its name is the name of its result.

    Attributes:
        name: unique in the graph, for example ``"layer1.0.conv2"``.
        op: for example ``"aten.conv2d.default"``, see `octavo.graph.operators`.
        args, kwargs: the operator's arguments; tensors are `Ref`.
        meta: the result's shape and dtype; ``None`` where the result is not one tensor.
        module: path of the module that made the call, ``""`` for the model itself.
        module_type: its class, for example ``"torch.nn.modules.conv.Conv2d"``.
    """

    name: str
    op: str
    args: tuple[Arg, ...] = ()
    kwargs: Mapping[str, Arg] = field(default_factory=dict)
    meta: TensorMeta | None = None
    module: str = ""
    module_type: str = ""

    @property
    def short_op(self) -> str:
        """The operator without namespace and overload: ``"conv2d"``."""
        return self.op.split(".")[1]

    def refs(self) -> Iterator[str]:
        """Names of all values that this node reads, in the order of its arguments."""
        yield from refs_in((self.args, tuple(self.kwargs.values())))

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The node reading ``names[x]`` wherever it read ``x``."""
        if names.keys().isdisjoint(self.refs()):
            return self
        args, kwargs = map_refs(
            (self.args, dict(self.kwargs)), lambda r: Ref(names.get(r.name, r.name))
        )
        return replace(self, args=args, kwargs=kwargs)


@dataclass(frozen=True)
class Graph:
    """A captured model.

    Attributes:
        inputs: tensors given by the caller, in the order of the flattened call.
        constants: parameters, buffers and other tensors of the model, by name.
        nodes: operator calls in an order in which they can run.
        arguments: how a call's arguments become ``inputs``: a tree per argument name, in the order
            of ``forward``; leaves are `Ref` (a tensor) or a fixed value.
        outputs: the structure that the model returns, a tree with `Ref` leaves.
        guards: what the sizes of the inputs must satisfy.
    """

    inputs: tuple[Input, ...]
    constants: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    arguments: Mapping[str, Any]
    outputs: Any
    guards: tuple[Guard, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the constants are; the CPU if there are none."""
        return next((t.device for t in self.constants.values()), torch.device("cpu"))

    def broken_guard(self, shapes: Mapping[str, Sequence[int]]) -> Guard | None:
        """The first guard that inputs of these shapes, by name, do not satisfy."""
        return next((guard for guard in self.guards if not guard.holds(shapes)), None)

    @property
    def given_arguments(self) -> list[str]:
        """The arguments that had a value when the model was captured, so that a call gives them."""
        return [name for name, tree in self.arguments.items() if tree is not None]

    def input_names(self) -> list[str]:
        return [entry.name for entry in self.inputs]

    def output_names(self) -> list[str]:
        return list(refs_in(self.outputs))

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes by their names."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> Mapping[str, Sequence[Node]]:
        """For each value's name, the nodes that read it (once each), in order."""
        users: dict[str, list[Node]] = {i.name: [] for i in self.inputs}
        users |= {name: [] for name in (*self.constants, *self.by_name)}
        for node in self.nodes:
            for name in dict.fromkeys(node.refs()):
                users[name].append(node)
        return users

    @cached_property
    def leaving(self) -> frozenset[str]:
        """The values that leave the model."""
        return frozenset(self.output_names())

    @cached_property
    def metas(self) -> Mapping[str, TensorMeta | None]:
        """Shape and dtype of inputs and nodes, by name."""
        metas: dict[str, TensorMeta | None] = {i.name: i.meta for i in self.inputs}
        return metas | {node.name: node.meta for node in self.nodes}

    def meta(self, name: str) -> TensorMeta | None:
        """Shape and dtype of any value; ``None`` where it is not one tensor."""
        constant = self.constants.get(name)
        return self.metas[name] if constant is None else TensorMeta.of(constant)

    def only_user(self, name: str) -> Node | None:
        """The one node that reads a value which does not leave the model."""
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self.leaving else None

    def producer(self, arg: Arg) -> Node | None:
        """The node that makes an argument; ``None`` for inputs, constants and plain values."""
        return self.by_name.get(arg.name) if isinstance(arg, Ref) else None

    def constant(self, arg: Arg) -> Tensor | None:
        """The tensor that an argument is; ``None`` where it is not a constant."""
        return self.constants.get(arg.name) if isinstance(arg, Ref) else None

    def node(self, name: str) -> Node:
        """The node of this name.

        Raises:
            OctavoError: there is none.
        """
        if name not in self.by_name:
            raise OctavoError(f"the graph has no node {name!r}")
        return self.by_name[name]

    def returning(self, names: Mapping[str, str]) -> Graph:
        """The graph returning ``names[x]`` wherever it returned ``x``."""
        outputs = map_refs(self.outputs, lambda ref: Ref(names.get(ref.name, ref.name)))
        return replace(self, outputs=outputs)

    def pruned(self) -> Graph:
        """The graph without nodes and constants that no output needs."""
        needed = set(self.leaving)
        nodes = []
        for node in reversed(self.nodes):
            if node.name in needed:
                nodes.append(node)
                needed.update(node.refs())
        constants = {n: t for n, t in self.constants.items() if n in needed}
        return replace(self, nodes=tuple(reversed(nodes)), constants=constants)

    def __str__(self) -> str:
        counts = Counter(node.short_op for node in self.nodes)
        ops = ", ".join(f"{count} {op}" for op, count in counts.most_common())
        return f"Graph({len(self.nodes)} nodes: {ops})"


def map_refs(tree: Any, function: Callable[[Ref], Any]) -> Any:
    """A nested structure with each `Ref` replaced by ``function(ref)``."""
    if isinstance(tree, Ref):
        return function(tree)
    if isinstance(tree, list | tuple):
        items = [map_refs(item, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, Mapping):
        mapped = {key: map_refs(value, function) for key, value in tree.items()}
        if isinstance(tree, Record):
            return Record.of(kind_of(tree), mapped.items())
        return type(tree)(mapped)  # type: ignore[call-arg]
    return tree


def refs_in(tree: Any) -> Iterator[str]:
    """The names of all `Ref` in a nested structure, in order."""
    if isinstance(tree, Ref):
        yield tree.name
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from refs_in(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from refs_in(item)


GRAPH = of(Graph, way_out="octavo.capture(model, example) gives one")
