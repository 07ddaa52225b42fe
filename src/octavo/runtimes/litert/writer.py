"""`Writer`: a LiteRT model under construction.

A value of the graph may stand in the file in several forms: as floats or integers, with the
channels second, as torch has them, or last, as LiteRT's layers want them. Each is made when it is
first read, by an operator that is written once.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, weight_behind
from octavo.runtimes.litert.flatbuffer import ACTIVATIONS, TYPES, Model, Quantization
from octavo.runtimes.litert.rounding import Rounding
from octavo.runtimes.litert.values import (
    FLOAT,
    Form,
    Made,
    Value,
    channels_last,
    channels_second,
)
from octavo.runtimes.litert.versions import version_of

# Whether it holds integers, and whether channels are last.
Kind = tuple[bool, bool]


@dataclass
class Writer:
    """Collects a file's operators.

    Attributes:
        graph: what is being written, of fixed sizes.
        convert: writes a node that was left until something reads it.
        for_boards: whether integers are wanted wherever LiteRT has a kernel for them.
        model: the file.
        rounding: of the node that is being written, where that runs on integers.
        kernels: node of the graph -> the operators that it became.
        made: rounding of the graph -> the operators that give its integers, in order.
        done: nodes that need no operator: what they do, another one does.
    """

    graph: Graph
    convert: Callable[[Writer, Node], None]
    for_boards: bool = False
    model: Model = field(default_factory=Model)
    rounding: Rounding | None = None
    kernels: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, list[Made]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    _entries: set[int] = field(default_factory=set)
    _values: dict[str, dict[Kind, Value]] = field(default_factory=dict)
    _current: str = ""
    _is_cut: bool = False

    # What converters ask

    def meta(self, ref: Ref | Node) -> TensorMeta:
        """Shape and dtype of a tensor of the graph."""
        meta = self.graph.meta(ref.name)
        if meta is None:
            raise ExportError(f"the shape of {ref.name!r} is not known, which its form depends on")
        return meta

    def shape(self, ref: Ref | Node) -> tuple[int, ...]:
        """The sizes of a tensor of the graph, in its order."""
        return tuple(size or 0 for size in self.meta(ref).shape)

    def tensor_of(self, arg: Any) -> Tensor | None:
        """The tensor that an argument is; ``None`` where it is not constant."""
        constant = self.graph.constant(arg)
        if constant is not None:
            return constant
        weight = weight_behind(self.graph, arg)
        return None if weight is None else weight.floats()

    def is_last(self, ref: Any) -> bool:
        """Whether a value stands in the file with its channels last, and not otherwise."""
        known = self._values.get(self._source(ref), {}) if isinstance(ref, Ref) else {}
        return bool(known) and all(last for _, last in known)

    def form(self, node: Node) -> Form:
        """The numbers that a node gives."""
        if self.rounding is not None:
            return self.rounding.form
        dtype = self.meta(node).dtype
        if dtype not in TYPES:
            raise ExportError(f"{node.name!r} is {dtype}, which LiteRT does not compute with")
        return Form(dtype)

    @property
    def on_integers(self) -> bool:
        """Whether the node that is being written runs on rounded values."""
        return self.rounding is not None

    def activation(self) -> int:
        """The schema's number of the activation that an operator applies to its result.

        Whoever asks gives it to the operator that makes the node's result.
        """
        if self.rounding is None or self.rounding.activation is None:
            return ACTIVATIONS["NONE"]
        self._is_cut = True
        return ACTIVATIONS[self.rounding.activation]

    def read(self, ref: Any, last: bool | None = None) -> Value:
        """A value as the node that is being written reads it.

        Args:
            ref: which.
            last: whether its channels shall be last; ``None`` takes it as it is.
        """
        return self._in_form(ref, self.on_integers and self.has_integers(ref), last)

    def read_floats(self, ref: Any, last: bool | None = None) -> Value:
        """A value as floats, or as the integers that it is in the graph itself."""
        return self._in_form(ref, False, last)

    def has_integers(self, ref: Any) -> bool:
        """Whether a value is known by integers that a tensor has one scale for."""
        producer = self.graph.producer(ref)
        return producer is not None and producer.op == DEQUANTIZE

    # What converters write

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        shape: Sequence[int],
        form: Form,
        options: str | None = None,
        *,
        last: bool = False,
        **settings: Any,
    ) -> Value:
        """Add an operator of one result, which is returned.

        Args:
            kind: the schema's name, for example ``"CONV_2D"``.
            inputs: values; ``None`` for one that is left out.
            shape: of the result, in its own order.
            form: of the result.
            options: name of its table of options.
            last: whether the result's channels are the last axis.
            settings: what the table says.
        """
        made = self._new(f"{self._current}/{kind.lower()}", shape, form, last)
        read = [-1 if value is None else value.index for value in inputs]
        forms = [value.form for value in inputs if value is not None]
        version = version_of(kind, forms, form, settings)
        self.model.operator(kind, read, [made.index], version, options, **settings)
        self.kernels.setdefault(self._current, []).append(f"{kind} {_numbers(forms, form)}")
        if self.rounding is not None and form == self.rounding.form:
            ends = self.rounding.low, self.rounding.high
            known = self.made.setdefault(self.rounding.name, [])
            known.append(Made(kind, tuple(inputs), made, *ends))
        return made

    def ops(
        self,
        kind: str,
        inputs: Sequence[Value],
        shapes: Sequence[Sequence[int]],
        forms: Sequence[Form],
        options: str,
        **settings: Any,
    ) -> list[Value]:
        """Add an operator of several results, each with its shape and form; else as for `op`."""
        name = f"{self._current}/{kind.lower()}"
        made = [self._new(name, *row, False) for row in zip(shapes, forms, strict=True)]
        read = [value.index for value in inputs]
        self.model.operator(kind, read, [value.index for value in made], 1, options, **settings)
        self.kernels.setdefault(self._current, []).append(f"{kind} {forms[0].dtype}")
        return made

    def constant(self, numbers: Any, form: Form, name: str = "constant") -> Value:
        """A constant tensor.

        Args:
            numbers: an array in the order that the file shall have, or what numpy makes one of.
            form: of its numbers.
            name: of the tensor.
        """
        dtype = "int8" if form.dtype == "int4" else form.dtype
        array = np.ascontiguousarray(np.asarray(numbers, dtype=np.dtype(dtype)))
        data = packed(array) if form.dtype == "int4" else array.tobytes()
        shape = np.shape(numbers)
        index = self.model.tensor(name, shape, form.dtype, form.quantization, data)
        return Value(index, shape, form)

    def ints(self, numbers: Any) -> Value:
        """A constant of int32: sizes, axes or positions."""
        return self.constant(np.asarray(numbers, dtype=np.int32), Form("int32"), "sizes")

    def reshaped(self, value: Value, shape: Sequence[int], last: bool = False) -> Value:
        """The same numbers in another shape; the value itself where it has that."""
        if tuple(shape) == value.shape:
            return replace(value, last=last)
        sizes = self.ints(shape)
        settings = {"newShape": [int(size) for size in shape]}
        return self.op(
            "RESHAPE", [value, sizes], shape, value.form, "ReshapeOptions", last=last, **settings
        )

    def transposed(self, value: Value, order: Sequence[int], last: bool = False) -> Value:
        """The value with its axes in another order; reshaped where that moves no number."""
        shape = [value.shape[axis] for axis in order]
        moving = [axis for axis in order if value.shape[axis] != 1]
        if moving == sorted(moving):
            return self.reshaped(value, shape, last)
        return self.op(
            "TRANSPOSE", [value, self.ints(order)], shape, value.form, "TransposeOptions", last=last
        )

    def laid(self, value: Value, last: bool) -> Value:
        """A value with its channels last, or second."""
        axes = range(len(value.shape))
        if value.last == last or len(axes) < 3:
            return replace(value, last=last)
        order = channels_last(axes) if last else channels_second(axes)
        return self.transposed(value, order, last)

    def requantized(self, value: Value, form: Form) -> Value:
        """A value in other numbers."""
        if value.form == form:
            return value
        kind, options = _CHANGES[value.form.quantization is None, form.quantization is None]
        return self.op(kind, [value], value.shape, form, options, last=value.last)

    def finish(self, node: Node, value: Value) -> None:
        """What a node made; integers within the range that they may have."""
        if self.rounding is None:
            self.keep(node.name, value)
            return
        value = self.requantized(value, self.rounding.form)
        if not self._is_cut and not self.rounding.is_full:
            for kind, end in (("MAXIMUM", self.rounding.low), ("MINIMUM", self.rounding.high)):
                bound = self.constant(end, value.form, "bound")
                inputs = [value, bound]
                options = "MaximumMinimumOptions"
                value = self.op(kind, inputs, value.shape, value.form, options, last=value.last)
        self.keep(self.rounding.name, value)
        self.done.add(self.rounding.name)
        if self.rounding.clip is not None:
            self.done.add(self.rounding.clip.name)

    def keep(self, name: str, value: Value) -> None:
        """Remember a value under its name in the graph."""
        kind = (value.form.quantization is not None, value.last)
        self._values.setdefault(name, {})[kind] = value

    @staticmethod
    def result_of(name: str, index: int) -> str:
        """Under which name one of a node's several results is kept."""
        return f"{name}[{index}]"

    def kept(self, name: str) -> Value | None:
        """A value that was kept under a name."""
        return next(iter(self._values.get(name, {}).values()), None)

    def start(self, name: str, rounding: Rounding | None) -> None:
        """What is written from now on belongs to a node."""
        self._current, self.rounding, self._is_cut = name, rounding, False

    def _new(self, name: str, shape: Sequence[int], form: Form, last: bool) -> Value:
        sizes = tuple(int(size) for size in shape)
        index = self.model.tensor(name, sizes, form.dtype, form.quantization)
        return Value(index, sizes, form, last)

    def entry(self, name: str, meta: TensorMeta, form: Form, last: bool) -> Value:
        """An input of the file."""
        sizes = tuple(size or 0 for size in meta.shape)
        made = self._new(name, channels_last(sizes) if last else sizes, form, last)
        self._entries.add(made.index)
        return made

    def is_entry(self, value: Value) -> bool:
        """Whether a value is an input of the file, or a constant."""
        return value.index in self._entries or self.model.tensors[value.index].buffer != 0

    def copied(self, value: Value) -> Value:
        """The same numbers in a tensor of their own."""
        sizes, settings = self.ints(value.shape), {"newShape": list(value.shape)}
        return self.op(
            "RESHAPE",
            [value, sizes],
            value.shape,
            value.form,
            "ReshapeOptions",
            last=value.last,
            **settings,
        )

    def _source(self, ref: Ref) -> str:
        """Under which name a value's forms are kept: integers under that of the rounding."""
        producer = self.graph.producer(ref)
        if producer is not None and producer.op == DEQUANTIZE:
            return str(producer.args[0].name)
        return ref.name

    def _in_form(self, ref: Any, integers: bool, last: bool | None) -> Value:
        name = self._source(ref)
        if name not in self._values:
            self._make(name, ref)
        known = self._values[name]
        # In the graph a quantize node's own value is integers, without a meaning.
        integers = integers or self._is_rounding(ref.name)
        if (integers, bool(last)) in known and last is not None:
            return known[integers, last]
        fitting = [value for (own, _), value in known.items() if own == integers]
        other = [value for (own, _), value in known.items() if own != integers]
        value = (fitting or other)[0]
        if not fitting and not integers:
            value = self._noted(name, self.requantized(value, FLOAT))
        if last is None or value.last == last:
            return value
        return self._noted(name, self.laid(value, last))

    def _make(self, name: str, ref: Any) -> None:
        """A constant, or what a node gives that was left until now."""
        node = self.graph.by_name.get(ref.name)
        if node is None or node.op == DEQUANTIZE_WEIGHT:
            self.keep(name, self._constant(ref))
            return
        outer = self._current, self.rounding, self._is_cut
        self.convert(self, node)
        self._current, self.rounding, self._is_cut = outer

    def _noted(self, name: str, value: Value) -> Value:
        self.keep(name, value)
        return value

    def _is_rounding(self, name: str) -> bool:
        node = self.graph.by_name.get(name)
        return node is not None and node.op == QUANTIZE

    def _constant(self, ref: Any) -> Value:
        """A constant of the graph, as it is; a quantized weight as its integers."""
        producer = self.graph.producer(ref)
        if producer is not None and producer.op == DEQUANTIZE_WEIGHT:
            return self._quantized_constant(ref)
        tensor = self.graph.constant(ref)
        if tensor is None:
            raise ExportError(f"{ref.name!r} is no single tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype == "float64":
            dtype, tensor = "float32", tensor.to(torch.float32)
        if dtype not in TYPES:
            raise ExportError(f"{ref.name!r} is {dtype}, which LiteRT does not compute with")
        return self.constant(tensor.detach().numpy(), Form(dtype), ref.name)

    def _quantized_constant(self, ref: Any) -> Value:
        """The integers of a weight, with a scale for each of its rows or for all of it.

        A row of several groups is as many rows here, which are joined again as floats.
        """
        weight = weight_behind(self.graph, ref)
        assert weight is not None
        integers = weight.integers
        shift = 0 if weight.signed else 8 if weight.unpack is not None else 128
        axis = weight.axis if weight.scale.numel() > 1 else 0
        if axis is None:
            groups = weight.scale.shape[-1]
            rows = [weight.scale.numel(), weight.shape[-1] // groups]
            if list(weight.scale.shape) != [*weight.shape[:-1], groups]:
                return self.constant(weight.floats().numpy(), FLOAT, weight.name)
            integers = integers.reshape(rows)
        numbers = Quantization(
            tuple(weight.scale.flatten().tolist()),
            tuple((weight.zero_point.flatten() - shift).tolist()),
            axis or 0,
        )
        form = Form("int8" if weight.unpack is None else "int4", numbers)
        stored = (integers.to(torch.int16) - shift).to(torch.int8)
        value = self.constant(stored.numpy(), form, weight.name)
        if axis is None:
            value = self.reshaped(self.requantized(value, FLOAT), weight.shape)
        return value


# Whether values are floats, before and behind -> the operator between.
_CHANGES = {
    (True, False): ("QUANTIZE", "QuantizeOptions"),
    (False, True): ("DEQUANTIZE", "DequantizeOptions"),
    (False, False): ("QUANTIZE", "QuantizeOptions"),
}

# Writes one node, and gives its value.
Converter = Callable[[Writer, Node], Value]


def packed(array: Any) -> bytes:
    """Integers of four bits, two to a byte: the first of two in the lower half."""
    flat = array.reshape(-1).astype(np.int8).view(np.uint8) & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return bytes((flat[::2] | (flat[1::2] << 4)).tobytes())


def _numbers(inputs: Sequence[Form], result: Form) -> str:
    """``"int8"``, or ``"float32"`` where an operator reads or gives floats."""
    dtypes = [form.dtype for form in (*inputs[:1], result)]
    return "float32" if "float32" in dtypes else dtypes[-1]
