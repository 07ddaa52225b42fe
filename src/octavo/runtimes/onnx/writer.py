"""`Writer`: an ONNX model under construction.

A value of the model is known by its name. Nodes of the graph keep their names as the names of what
they give; what a converter makes on the way is called ``<node>/<operator>``.

Tested in tests/runtimes/onnx/test_zoo.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ExportError, optional_import
from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.open_sizes import batch_name
from octavo.runtimes.onnx.dialect import Dialect

with optional_import("onnx", "onnx", "write ONNX models"):
    import onnx
    from onnx import TensorProto

# 20: Gelu. ONNX Runtime cannot load some models of signed integers in a later one: it moves their
# QuantizeLinear, makes them unsigned, and leaves the attribute that it gave them signed.
OPSET, IR_VERSION = 20, 9
# DequantizeLinear in groups, int4 and int16.
LATER_OPSET, LATER_IR_VERSION = 21, 10
_OF_LATER_OPSET = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.INT16})
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators

DTYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
}


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Writer:
    """Collects nodes and initializers.

    Attributes:
        graph: what is being written.
        dialect: how.
        convert_lazily: converts a node that was left until something reads it.
        values: name in the graph -> value of the model, or a list of them for a node that gives
            several tensors.
    """

    graph: Graph
    dialect: Dialect
    convert_lazily: Callable[[Writer, Node], None]
    values: dict[str, Any] = field(default_factory=dict)
    _nodes: list[Any] = field(default_factory=list)
    _initializers: dict[str, Any] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _current: Node | None = None

    def __post_init__(self) -> None:
        self._used = set(self.graph.input_names()) | set(self.graph.by_name)
        self.values = {entry.name: entry.name for entry in self.graph.inputs}

    # What converters ask

    def meta(self, ref: Ref | Node) -> TensorMeta:
        """Shape and dtype of a tensor of the graph.

        Raises:
            ExportError: they are not known.
        """
        meta = self.graph.meta(ref.name)
        if meta is None:
            raise ExportError(
                f"the shape of {ref.name!r} is not known, which its ONNX form depends on"
            )
        return meta

    def is_tensor(self, arg: Any) -> bool:
        """Whether an argument is a tensor of known shape, and not a size."""
        return isinstance(arg, Ref) and self.graph.meta(arg.name) is not None

    def rank(self, ref: Ref | Node) -> int:
        """Number of dimensions of a tensor."""
        return len(self.meta(ref).shape)

    def producer(self, ref: Any) -> Node | None:
        """The node that makes a value; ``None`` for inputs, constants and plain values."""
        return self.graph.producer(ref)

    def tensor_of(self, ref: Any) -> Tensor | None:
        """The tensor of a constant."""
        return self.graph.constant(ref)

    def maker(self, value: str) -> Any:
        """The node of the model that gives a value; ``None`` for inputs and initializers."""
        return next((node for node in reversed(self._nodes) if value in node.output), None)

    # What converters write

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one result, which is returned; arguments as for `ops`."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node.

        Args:
            kind: ONNX's name, for example ``"Conv"``.
            inputs: values; ``""`` for one that is left out.
            outputs: number of results.
            domain: of operators that are not ONNX's own.
            attributes: ONNX's, those that are ``None`` are left out.

        Returns:
            The names of the results' values.
        """
        assert self._current is not None
        base = f"{self._current.name}/{kind}"
        names = [self._unused(base) for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        while inputs and inputs[-1] == "":
            inputs = inputs[:-1]
        node = onnx.helper.make_node(kind, list(inputs), names, names[0], domain=domain, **given)
        self._nodes.append(node)
        return names

    def read(self, arg: Any) -> str:
        """The value of a reference.

        Raises:
            ExportError: it stands for several tensors.
        """
        if arg.name not in self.values:
            if arg.name in self.graph.constants:
                self.values[arg.name] = self.initializer(arg.name, self.graph.constants[arg.name])
            else:
                self.convert_lazily(self, self.graph.by_name[arg.name])
        value = self.values[arg.name]
        if not isinstance(value, str):
            raise ExportError(f"{arg.name!r} is a list of tensors where one tensor is read")
        return value

    def read_as(self, arg: Any, dtype: str) -> str:
        """A tensor, size or number as a value of a dtype."""
        if not isinstance(arg, Ref):
            return self.constant(arg, dtype)
        held = self.meta(arg).dtype if self.is_tensor(arg) else "int64"
        return self.cast(self.read(arg), held, dtype)

    def cast(self, value: str, held: str, wanted: str) -> str:
        """A value in another dtype."""
        return value if held == wanted else self.op("Cast", value, to=DTYPES[wanted])

    def constant(self, numbers: Any, dtype: str) -> str:
        """A small tensor, kept once however often it is asked for."""
        array = np.asarray(numbers, dtype=np.dtype(dtype))
        key = (array.tobytes(), array.shape, dtype)
        if key not in self._known:
            name = self._unused(f"constant.{len(self._known)}")
            self._initializers[name] = onnx.numpy_helper.from_array(array, name)
            self._known[key] = name
        return self._known[key]

    def ints(self, numbers: Sequence[int]) -> str:
        """A vector of int64."""
        return self.constant([int(number) for number in numbers], "int64")

    def initializer(self, name: str, tensor: Tensor) -> str:
        """A tensor under its own name."""
        if name in self._initializers:
            return name
        tensor = tensor.detach().contiguous().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor_proto = onnx.helper.make_tensor(
                name,
                TensorProto.BFLOAT16,
                list(tensor.shape),
                tensor.view(torch.int16).numpy().tobytes(),
                raw=True,
            )
        else:
            tensor_proto = onnx.numpy_helper.from_array(tensor.numpy(), name)
        self._initializers[name] = tensor_proto
        self._used.add(name)
        return name

    def packed_initializer(self, name: str, packed: Tensor, shape: list[int], dtype: str) -> str:
        """Integers of four bits, two to a byte: the first of two in the lower half."""
        raw = packed.contiguous().cpu().numpy().tobytes()
        tensor_proto = onnx.helper.make_tensor(name, DTYPES[dtype], shape, raw, raw=True)
        self._initializers[name] = tensor_proto
        self._used.add(name)
        return name

    @contextmanager
    def writing(self, node: Node) -> Iterator[Callable[[Any], None]]:
        """What is written inside belongs to a node; the function that is given takes its value.

        The value gets the node's name where it is new.
        """
        outer, self._current, since = self._current, node, len(self._nodes)
        try:
            yield lambda value: self._finish(node, value, since)
        finally:
            self._current = outer

    def _finish(self, node: Node, value: Any, since: int) -> None:
        self.values[node.name] = value
        nodes = self._nodes[since:]
        producer = next((n for n in nodes if isinstance(value, str) and value in n.output), None)
        if producer is None:
            return
        if len(producer.output) == 1:
            producer.name = node.name
        for other in nodes:
            for names in (other.input, other.output):
                for index, name in enumerate(names):
                    if name == value:
                        names[index] = node.name
        self.values = {
            key: node.name if isinstance(known, str) and known == value else known
            for key, known in self.values.items()
        }

    def model(self, name: str, metadata: Mapping[str, str]) -> Any:
        """The ONNX model."""
        inputs = [_described(entry.name, entry.meta, entry.axes) for entry in self.graph.inputs]
        outputs = self._outputs()
        nodes = self._needed({described.name for described in outputs})
        read = {value for node in nodes for value in node.input}
        initializers = [tensor for key, tensor in self._initializers.items() if key in read]
        graph = onnx.helper.make_graph(nodes, name, inputs, outputs, initializers)
        opset, ir_version = _versions(nodes, initializers)
        versions = {"": opset} | {node.domain: 1 for node in nodes if node.domain}
        model = onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid(*used) for used in versions.items()],
            ir_version=ir_version,
            producer_name="octavo",
        )
        onnx.helper.set_model_props(model, dict(metadata))
        return model

    def _needed(self, needed: set[str]) -> list[Any]:
        """The nodes that the results depend on."""
        kept = []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                needed.update(node.input)
                kept.append(node)
        return kept[::-1]

    def _outputs(self) -> list[Any]:
        """The results in order: each has a name of its own, also where two are one tensor.

        Where the batch comes first, so it does in what is returned.
        """
        first = any(entry.batch_axis == 0 for entry in self.graph.inputs)
        batch = batch_name(self.graph) if first else ""
        described, seen = [], set(self.graph.input_names())
        for name in self.graph.output_names():
            value = self.read(Ref(name))
            if value in seen or value in self._initializers or value != name:
                unique = self._unused(name if name not in self._used else f"{name}.output")
                self._nodes.append(onnx.helper.make_node("Identity", [value], [unique], unique))
                value = unique
            seen.add(value)
            meta = self.meta(Ref(name))
            axes = [f"{value}_{axis}" for axis in range(len(meta.shape))]
            described.append(_described(value, meta, [batch, *axes[1:]] if batch else axes))
        return described

    def _unused(self, base: str) -> str:
        name, count = base, 1
        while name in self._used or name in self._initializers:
            name, count = f"{base}.{count}", count + 1
        self._used.add(name)
        return name


def kept_apart(w: Writer, extreme: str) -> str:
    """A maximum or minimum of floats, as it is, for what follows.

    OpenVINO takes a QuantizeLinear that follows into the search, and finds another extreme.
    """
    return w.op("Max", extreme, w.constant(-np.inf, "float32"))


_SHIFTS = frozenset({"add", "sub", "rsub", "batch_norm"})
_SCALES = frozenset({"mul", "div"})


def fenced(w: Writer, x: Ref) -> str:
    """What zeros are put around, for an average that counts them."""
    maker = w.producer(x)
    while maker is not None and maker.short_op in _SCALES:
        maker = w.producer(maker.args[0])
    shifted = maker is not None and maker.short_op in _SHIFTS
    value = w.read(x)
    return kept_apart(w, value) if shifted and w.dialect.fenced_padding else value


# Writes one node: gives its value, or a list of them for a node that gives several tensors.
Converter = Callable[[Writer, Node], Any]


def _versions(nodes: Sequence[Any], initializers: Sequence[Any]) -> tuple[int, int]:
    """The earliest opset that has all that is written, and its version of the format."""
    grouped = any(attribute.name == "block_size" for node in nodes for attribute in node.attribute)
    if grouped or any(tensor.data_type in _OF_LATER_OPSET for tensor in initializers):
        return LATER_OPSET, LATER_IR_VERSION
    return OPSET, IR_VERSION


def _described(name: str, meta: TensorMeta, axes: Sequence[str]) -> Any:
    """An input or output of the model, whose open sizes have these names."""
    sizes = zip(axes, meta.shape, strict=False)  # a number has no axes
    shape = [called if size is None else size for called, size in sizes]
    return onnx.helper.make_tensor_value_info(name, DTYPES[meta.dtype], shape)


def serialized(model: Any) -> bytes:
    """The bytes of a model.

    Raises:
        ExportError: it is larger than the 2 GB that one ONNX file can hold.
    """
    size = model.ByteSize()
    if size >= 2**31:
        raise ExportError(f"the model has {size / 2**30:.1f} GB, an ONNX file at most 2")
    data: bytes = model.SerializeToString()
    return data


def layer_of(name: str) -> str:
    """The node of the graph that an operator of the model is a part of."""
    return name.split("/")[0]


def node_kinds(path: Path) -> list[tuple[str, str]]:
    """Name and operator of each node of an ONNX file."""
    return [(node.name, node.op_type) for node in onnx.load(str(path)).graph.node]
