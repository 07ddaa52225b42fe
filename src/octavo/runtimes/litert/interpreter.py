"""LiteRT's interpreter: it runs what `export` writes.

Tested in tests/runtimes/litert/test_runtime.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import RuntimeUnavailable, first_line
from octavo.numerics.octavo_operators import dequantize, quantize
from octavo.runtimes.foreign import as_array
from octavo.runtimes.litert.export import Entry, Written
from octavo.runtimes.litert.kernels import KERNELS
from octavo.runtimes.litert.package import package
from octavo.runtimes.litert.values import channels_last, channels_second


class Program:
    """A file's content, ready to run on inputs of its sizes; calls take turns.

    Args:
        written: the file.
        kernels: which of `KERNELS`.
        threads: of a call.

    Raises:
        RuntimeUnavailable: LiteRT cannot load it.
    """

    def __init__(self, written: Written, kernels: str = "xnnpack", threads: int = 1) -> None:
        litert = package()
        self.written = written
        try:
            self.interpreter = litert.Interpreter(
                model_content=written.data,
                num_threads=threads,
                experimental_op_resolver_type=getattr(
                    litert.OpResolverType, KERNELS[kernels].resolver
                ),
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise RuntimeUnavailable(f"LiteRT cannot load the model: {_reason(error)}") from error
        self.calling = threading.Lock()

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the model gives, with torch's order of axes.

        Raises:
            RuntimeUnavailable: LiteRT cannot run it.
        """
        inputs = [_to_file(*pair) for pair in zip(self.written.inputs, tensors, strict=True)]
        with self.calling:
            for entry, array in zip(self.written.inputs, inputs, strict=True):
                self.interpreter.set_tensor(entry.value.index, array)
            try:
                self.interpreter.invoke()
            except (RuntimeError, ValueError) as error:
                words = f"LiteRT cannot run these inputs: {_reason(error)}"
                raise RuntimeUnavailable(words) from error
            return tuple(self._result(entry) for entry in self.written.outputs)

    def _result(self, entry: Entry) -> Tensor:
        result = torch.from_numpy(np.array(self.interpreter.get_tensor(entry.value.index)))
        if entry.rounded:
            form = entry.value.form
            result = dequantize(result, form.scale, form.zero_point)
        if not entry.value.last:
            return result
        return result.permute(channels_second(range(result.dim()))).contiguous()


def _to_file(entry: Entry, tensor: Tensor) -> Any:
    """An input in the file's order of axes, and in its numbers."""
    if entry.value.last:
        tensor = tensor.permute(channels_last(range(tensor.dim())))
    if entry.rounded:
        form = entry.value.form
        dtype = getattr(torch, form.dtype)
        ends = torch.iinfo(dtype)
        tensor = quantize(tensor, form.scale, form.zero_point, ends.min, ends.max, dtype)
    return as_array(tensor).reshape(entry.value.shape)


def _reason(error: Exception) -> str:
    return first_line(error)
