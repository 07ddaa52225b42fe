"""`Model`: a TFLite file under construction, as tensors, operators and buffers by their numbers.

Only this module knows the file's schema.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.errors import ExportError, optional_import
from octavo.runtimes.litert.arena import Lifetime

with optional_import("ai-edge-litert", "litert", "write and run LiteRT models (.tflite)"):
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

# The format keeps offsets in 32 bits, of which flatbuffers uses 31.
_LARGEST = 2**31 - 1
_ALIGNMENT = 16  # of weights in the file, which is mapped into memory
_VERSION = 3

TYPES: Mapping[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}

# What an operator applies to its result, and how it treats the edges of an image.
ACTIVATIONS: Mapping[str, int] = {
    name: getattr(schema.ActivationFunctionType, name)
    for name in ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
}
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


def builder(size: int) -> Any:
    """What writes a flatbuffer, of so many bytes at first."""
    return flatbuffers.Builder(size)


@dataclass(frozen=True)
class Quantization:
    """What integers mean: ``value = (integer - zero_point) * scale``.

    Attributes:
        scales: one, or one for each index of an axis.
        zero_points: as many.
        axis: of the channels, where there are several scales.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """Bytes that begin where a CPU likes them to."""

    def Pack(self, builder: Any) -> int:
        if self.data is None:
            return super().Pack(builder)  # type: ignore[no-any-return]
        size = len(self.data)
        builder.StartVector(1, size, _ALIGNMENT)
        builder.head -= size
        builder.Bytes[builder.head : builder.head + size] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)  # type: ignore[no-any-return]


class _Parameters(schema.QuantizationParametersT):  # type: ignore[misc]
    """Scales and zero points; tensors whose numbers are equal share them in the file.

    A zero point takes twice the bytes of a scale, and those of weights are all zero.
    """

    def __init__(self, numbers: Quantization, shared: dict[bytes, int]) -> None:
        super().__init__()
        self.numbers, self.shared = numbers, shared

    def Pack(self, builder: Any) -> int:
        scale = self._vector(builder, self.numbers.scales, np.float32)
        zero_point = self._vector(builder, self.numbers.zero_points, np.int64)
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scale)
        schema.QuantizationParametersAddZeroPoint(builder, zero_point)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.numbers.axis)
        return schema.QuantizationParametersEnd(builder)  # type: ignore[no-any-return]

    def _vector(self, builder: Any, numbers: Sequence[float], dtype: Any) -> int:
        array = np.asarray(numbers, dtype=dtype)
        key = array.tobytes()
        if key not in self.shared:
            self.shared[key] = builder.CreateNumpyVector(array)
        return self.shared[key]


@dataclass
class Model:
    """Collects tensors and operators; each is known by its number."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    _known: dict[bytes, int] = field(default_factory=dict)
    _codes: dict[tuple[int, int], int] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _shared: dict[bytes, int] = field(default_factory=dict)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        quantization: Quantization | None = None,
        data: bytes | None = None,
    ) -> int:
        """Add a tensor; a constant one where there is data, which is kept once if it is equal."""
        tensor = schema.TensorT()
        tensor.name = self._unused(name)
        tensor.shape = np.asarray(shape, dtype=np.int32)
        tensor.type = TYPES[dtype]
        tensor.buffer = 0 if data is None else self._buffer(data)
        if quantization is not None:
            tensor.quantization = _Parameters(quantization, self._shared)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        version: int = 1,
        options: str | None = None,
        **settings: Any,
    ) -> None:
        """Add an operator.

        Args:
            kind: the schema's name, for example ``"CONV_2D"``.
            inputs: tensors; -1 for one that is left out.
            outputs: tensors.
            version: of the operator, as runtimes count them.
            options: name of its table of options, ``"Conv2DOptions"``; ``None`` without one.
            settings: what that table says.
        """
        made = schema.OperatorT()
        made.opcodeIndex = self._code(getattr(schema.BuiltinOperator, kind), version)
        made.inputs = np.asarray(inputs, dtype=np.int32)
        made.outputs = np.asarray(outputs, dtype=np.int32)
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")(**settings)
        self.operators.append(made)

    def serialized(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, bytes],
    ) -> bytes:
        """The file, with a signature of these names.

        Raises:
            ExportError: it is larger than the format allows.
        """
        size = sum(len(b.data) for b in self._buffers if b.data is not None)
        if size > _LARGEST:
            raise ExportError(f"the model has {size / 2**30:.1f} GB, a .tflite file at most 2")
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs = np.asarray(list(inputs.values()), dtype=np.int32)
        graph.outputs = np.asarray(list(outputs.values()), dtype=np.int32)
        model = schema.ModelT()
        model.version, model.description = _VERSION, "octavo"
        model.subgraphs = [graph]
        model.operatorCodes = [_code_of(*key) for key in self._codes]
        model.signatureDefs = [_signature(inputs, outputs)]
        model.metadata = [self._metadata(*item) for item in metadata.items()]
        model.buffers = self._buffers
        self._shared.clear()  # places in the file that is made now
        made = builder(size + 2**16)
        made.Finish(model.Pack(made), b"TFL3")
        return bytes(made.Output())

    def lifetimes(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Lifetime]:
        """For how long each value is needed that is no constant."""
        first = dict.fromkeys(inputs, 0)
        last = dict.fromkeys(inputs, 0)
        for place, operator in enumerate(self.operators):
            for index in map(int, operator.outputs):
                first[index] = last[index] = place
            last |= {index: place for index in map(int, operator.inputs) if index in first}
        last |= dict.fromkeys(outputs, len(self.operators))
        sizes = {index: self._bytes(self.tensors[index]) for index in first}
        return [Lifetime(sizes[index], first[index], last[index]) for index in first]

    def _bytes(self, tensor: Any) -> int:
        name = next(name for name, number in TYPES.items() if number == tensor.type)
        return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(name).itemsize

    def _buffer(self, data: bytes) -> int:
        if data not in self._known:
            self._known[data] = len(self._buffers)
            buffer = _Buffer()
            buffer.data = data
            self._buffers.append(buffer)
        return self._known[data]

    def _metadata(self, name: str, data: bytes) -> Any:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(data)
        return entry

    def _code(self, kind: int, version: int) -> int:
        return self._codes.setdefault((kind, version), len(self._codes))

    def _unused(self, base: str) -> str:
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}.{count}", count + 1
        self._names.add(name)
        return name


_LAST_OLD_CODE = 127  # later operators have a number in the wider field alone


def _code_of(kind: int, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = kind, version
    code.deprecatedBuiltinCode = min(kind, _LAST_OLD_CODE)
    return code


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = "serving_default", 0
    made.inputs, made.outputs = _mapped(inputs), _mapped(outputs)
    return made


def _mapped(tensors: Mapping[str, int]) -> list[Any]:
    entries = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        entries.append(entry)
    return entries
