"""DATA on a command line as batches: a file of arrays, a folder of images, a reference."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from octavo.cli.sources.columns import (
    PARQUET,
    ImageCells,
    StoredImages,
    holds_columns,
    read_columns,
)
from octavo.cli.sources.image_folder import ImageFolder, ImageOptions
from octavo.cli.sources.references import call_reference, is_reference, resolve_reference
from octavo.cli.sources.table import read_table
from octavo.errors import InputError
from octavo.graph.batches import LABEL_KEYS, Signature
from octavo.model.files import tensor_file
from octavo.model.files.source_file import check_file, reason

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class ArrayBatches:
    """Arrays of equal length, cut into batches; it can be iterated again and again.

    Attributes:
        arrays: tensors by name, the samples in dimension 0.
        by_name: ``True`` gives dicts (the names are the model's arguments), ``False`` tuples.
        batch_size: samples in a batch; the last one may have fewer.
    """

    arrays: dict[str, Tensor]
    by_name: bool
    batch_size: int = DEFAULT_BATCH_SIZE

    def __len__(self) -> int:
        return -(-self._samples() // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor] | tuple[Tensor, ...]]:
        for start in range(0, self._samples(), self.batch_size):
            stop = start + self.batch_size
            batch = {name: tensor[start:stop] for name, tensor in self.arrays.items()}
            yield batch if self.by_name else tuple(batch.values())

    def _samples(self) -> int:
        return len(next(iter(self.arrays.values())))


def load_data(
    source: str,
    signature: Signature,
    batch_size: int = DEFAULT_BATCH_SIZE,
    images: ImageOptions | None = None,
) -> Iterable[Any]:
    """Batches from a DATA argument.

    Args:
        source: a ``.npz``, ``.safetensors`` or ``.npy`` file, a ``.csv`` table of numbers (see
            `octavo.cli.sources.table`), a ``.parquet`` file or a folder that Hugging Face's
            ``save_to_disk`` wrote (see `octavo.cli.sources.columns`), a folder of images (see
            `ImageFolder`), or ``package.module:name`` of an iterable of batches, or of a function
            without arguments that returns one. In a file, an array named as a label (``labels``,
            ``y`` ...) holds the labels; the others are the model's arguments, by name where the
            names are its own, else in the file's order. float64 arrays, numpy's default, become
            float32.
        signature: the argument names of the model.
        batch_size: for files and folders only.
        images: for folders only; ``None`` is `ImageOptions` as it is.

    Raises:
        InputError: the source cannot be read, or does not fit the model.
        MissingExtra: it holds images, and Pillow is not installed, or columns, and pyarrow is not.
    """
    if source and holds_columns(Path(source)):
        return _columns(source, signature, batch_size, images or ImageOptions())
    if source and Path(source).is_dir():
        return _folder(source, signature, batch_size, images or ImageOptions())
    if Path(source).suffix not in _READERS:
        if source and Path(source).exists() and not is_reference(source):
            kinds = " and ".join((*_READERS, PARQUET))
            raise InputError(
                f"{source} is of another kind than {kinds}: give such a file, or "
                "package.module:name of batches"
            )
        found = resolve_reference(source)
        batches = call_reference(source, found) if callable(found) else found
        if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
            raise InputError(
                f"{source} gives a {type(batches).__name__}, not an iterable of batches"
            )
        return batches
    _check_batch_size(batch_size)
    arrays = _read(Path(source))
    _check_lengths(source, arrays)
    return _batches(source, arrays, signature, batch_size)


def _folder(
    source: str, signature: Signature, batch_size: int, images: ImageOptions
) -> ImageFolder:
    _check_batch_size(batch_size)
    if signature.required > 1:
        raise InputError(
            f"{source} is a folder of images, which is one argument; the model needs "
            f"{list(signature.names[: signature.required])}: give package.module:name of batches"
        )
    return ImageFolder.of(Path(source), images, batch_size)


def _columns(
    source: str, signature: Signature, batch_size: int, options: ImageOptions
) -> Iterable[Any]:
    _check_batch_size(batch_size)
    columns = read_columns(Path(source), signature.names, LABEL_KEYS)
    pictures = [column for column in columns.values() if isinstance(column, ImageCells)]
    arrays = {n: _tensor(c) for n, c in columns.items() if not isinstance(c, ImageCells)}
    if not pictures:
        _check_lengths(source, arrays)
        return _batches(source, arrays, signature, batch_size)
    if len(pictures) > 1 or signature.required > 1 or not set(arrays) <= set(LABEL_KEYS):
        raise InputError(
            f"{source} holds the columns {sorted(columns)}; images are one argument beside labels, "
            "and the model's only one: leave the others out, or give package.module:name of batches"
        )
    labels = next(iter(arrays.values()), None)
    return StoredImages(pictures[0], labels, options, batch_size)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 is needed")


def _batches(
    source: str, arrays: dict[str, Tensor], signature: Signature, batch_size: int
) -> ArrayBatches:
    labels = {n: a for n, a in arrays.items() if n in LABEL_KEYS and n not in signature.names}
    inputs = {name: array for name, array in arrays.items() if name not in labels}
    if len(labels) > 1:
        raise InputError(f"{source} holds {sorted(labels)}: which of them are the labels?")
    if inputs and set(inputs) <= set(signature.names):
        inputs = {name: inputs[name] for name in signature.names if name in inputs}
        # By position where that is enough: a module of torch.export takes its arguments only so.
        by_name = tuple(inputs) != signature.names[: max(1, signature.required)]
        return ArrayBatches(inputs | labels, by_name, batch_size)
    in_order = source.endswith(".npz") or len(inputs) == 1
    if len(inputs) == max(1, signature.required) and in_order:
        return ArrayBatches(inputs | labels, False, batch_size)
    raise InputError(
        f"{source} holds the arrays {sorted(inputs)} beside labels; the model takes "
        f"{list(signature.names)}, {signature.required} of them required: name the arrays like that"
    )


def _check_lengths(source: str, arrays: dict[str, Tensor]) -> None:
    lengths = {name: len(array) if array.dim() else None for name, array in arrays.items()}
    if not lengths:
        raise InputError(f"{source} holds no arrays")
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise InputError(
            f"the arrays in {source} have different numbers of samples (dimension 0): {lengths}"
        )
    if 0 in lengths.values():
        raise InputError(f"the arrays in {source} are empty: {sorted(lengths)}")


def _read_npz(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            "it is not an archive of arrays as numpy.savez writes it, or it is cut off"
        )
    with path.open("rb") as opened, NpzFile(opened, allow_pickle=False) as file:
        return {name: _tensor(file[name]) for name in file.files}


def _read_npy(path: Path) -> dict[str, Tensor]:
    return {"array": _tensor(np.load(path, allow_pickle=False))}


def _read_csv(path: Path) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in read_table(path, LABEL_KEYS).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    return {name: _single(tensor) for name, tensor in tensor_file.read(path)[1].items()}


_READERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".npy": _read_npy,
    ".csv": _read_csv,
}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        check_file(path)
        return _READERS[path.suffix](path)
    except (
        Exception
    ) as error:  # zlib's, numpy's and zipfile's errors of damaged files share no base
        raise InputError(f"cannot read {path} as {path.suffix}: {reason(error)}") from error


def _tensor(array: Any) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise TypeError("it holds a file that is not an array")
    return _single(torch.from_numpy(np.ascontiguousarray(array)))


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.float64 else tensor
