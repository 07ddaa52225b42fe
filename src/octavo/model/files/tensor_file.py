"""A safetensors file, read once and into memory of its own.

safetensors' own reader opens a file twice by its name and gives tensors that stay mapped to it:
they change when the file is written over, the process dies when it is cut off, and a file that is
replaced meanwhile is read half old, half new. Here the file is opened once, and what was read has
nothing more to do with it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors by name, on the CPU.

    Takes as much memory as the file is long, whatever the file says.

    Raises:
        ValueError: it is not a safetensors file, is cut off, or has a tensor of a dtype that
            models are not saved in.
        OSError: it cannot be read.

    Example:
        >>> metadata, tensors = read("model.safetensors")  # doctest: +SKIP
    """
    with Path(path).open("rb", buffering=0) as file:
        metadata, places = _header(file)
        return metadata, {name: _tensor(file, entry) for name, entry in places}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata alone; no tensor is read.

    Raises:
        ValueError, OSError: as `read`.
    """
    with Path(path).open("rb", buffering=0) as file:
        return _header(file)[0]


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Of all tensors, none of which is read.

    Raises:
        ValueError, OSError: as `read`.
    """
    with Path(path).open("rb", buffering=0) as file:
        return [name for name, _ in _header(file)[1]]


def dtype_of(code: str) -> torch.dtype:
    """The dtype of a tensor by the code that safetensors has for it."""
    return _DTYPES[code]


def _header(file: BinaryIO) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """Metadata, and where each tensor is; the file is at the first of them then."""
    length = os.fstat(file.fileno()).st_size
    size = int.from_bytes(_bytes(file, 8), "little")
    if not 0 < size <= min(length - 8, _LARGEST_HEADER):
        raise ValueError(f"its header of {size} bytes is not there")
    header = json.loads(_bytes(file, size).decode())
    if not isinstance(header, dict) or not all(isinstance(e, dict) for e in header.values()):
        raise ValueError("its header is not that of a safetensors file")
    metadata = header.pop("__metadata__", {})
    places = sorted(header.items(), key=lambda item: list(item[1]["data_offsets"]))
    _check(metadata, places, length - 8 - size)
    return metadata, places


def _check(metadata: Any, places: list[tuple[str, Any]], length: int) -> None:
    """Tensors lie side by side, and fill the file."""
    if not all(isinstance(text, str) for text in dict(metadata).values()):
        raise ValueError("its metadata is not text")
    end = 0
    for name, entry in places:
        begin, after = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"its tensor {name!r} has the dtype {entry['dtype']!r}")
        shape = entry["shape"]
        if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, after)):
            raise ValueError(f"its tensor {name!r} has the shape {shape!r:.80}")
        if begin != end or after - begin != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"its tensor {name!r} is not where its header says")
        end = after
    if end != length:
        raise ValueError(f"it has {length} bytes of tensors, its header says {end}")


def _tensor(file: BinaryIO, entry: Any) -> Tensor:
    begin, end = entry["data_offsets"]
    data = torch.empty(end - begin, dtype=torch.uint8)
    _fill(file, data.numpy().data)
    dtype = _DTYPES[entry["dtype"]]
    if dtype is torch.bool:
        data.ne_(0)  # kernels count on bytes of 0 and 1
    return data.view(dtype).reshape(entry["shape"])


def _bytes(file: BinaryIO, count: int) -> bytearray:
    content = bytearray(count)
    _fill(file, memoryview(content))
    return content


def _fill(file: BinaryIO, memory: memoryview) -> None:
    while memory:
        count = file.readinto(memory)  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends early")
        memory = memory[count:]
