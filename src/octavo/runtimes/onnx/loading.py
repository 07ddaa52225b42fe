"""Weights of layers that run in float: a runtime makes floats of their integers as it loads them.

DequantizeLinear stays where it is, for kernels on integers to take it in, and is run at each call
where there is no such kernel. ONNX Runtime folds other operators on constants, and packs what comes
of them.

Tested in tests/runtimes/onnx/test_loading.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from octavo.graph.qdq import weight_behind
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.writer import DTYPES, Writer


def weight(w: Writer, ref: Any) -> str:
    """A layer's weight as a float value, as `quantization.weight` gives it."""
    integers = weight_behind(w.graph, ref) if w.dialect.loaded_as_floats else None
    if integers is None or integers.unpack is not None:
        return quantization.weight(w, ref)
    known = f"{ref.name}.loaded"
    if known not in w.values:
        names = [f"{name}.loaded" for name in integers.reader.refs()]
        values = (integers.integers, *integers.parameters())
        w.values[known] = floats(w, dict(zip(names, values, strict=True)))
    value: str = w.values[known]
    return value


def floats(w: Writer, tensors: dict[str, Tensor]) -> str:
    """``(integers - zero_point) * scale``, computed once.

    Args:
        w: the writer.
        tensors: name -> integers, scale and zero point, which broadcast.
    """
    (name, integers), (scale_name, scale), (start_name, zero_point) = tensors.items()
    value = w.op("Cast", w.initializer(name, integers), to=DTYPES["float32"])
    if bool(zero_point.any()):
        value = w.op("Sub", value, w.initializer(start_name, zero_point.float()))
    return w.op("Mul", value, w.initializer(scale_name, scale))
