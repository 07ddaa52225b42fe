"""Shards of a model: safetensors files that hold some of its tensors, each with a seal.

Tested in tests/flow/blockwise/test_folder.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.model.files import sealed, tensor_file

VERSION = 2  # 1 had integers in the shape of the floats
_KEYS = ("format", "version", "of", "parts")


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], parts: Mapping[str, Any], of_what: str
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: of the file.
        tensors: by their names in the model.
        parts: the quantized layers that they are of, see `stored_layers`.
        of_what: tells the model and how it is quantized from others.

    Raises:
        ArtifactError: it cannot be written.
    """
    texts = {"version": str(VERSION), "of": of_what, "parts": json.dumps(parts)}
    sealed.write(path, {"format": sealed.FORMAT, **texts}, tensors, _KEYS)


def read_shard(path: Path) -> tuple[str, dict[str, Any], dict[str, int]]:
    """Of which model a shard is, its parts, and its tensors' names with their sizes in bytes.

    Raises:
        ArtifactError: it is not a shard, or is damaged.
    """
    with sealed.reading(path):
        metadata, tensors = sealed.read(path)
        sealed.check_header(metadata, (*_KEYS, sealed.SEAL), range(VERSION, VERSION + 1))
        sealed.check_seal(metadata, tensors, _KEYS)
        sizes = {name: tensor.numel() * tensor.itemsize for name, tensor in tensors.items()}
        return metadata["of"], json.loads(metadata["parts"]), sizes


def check_shard(path: str | os.PathLike[str]) -> None:
    """See that a file is whole, and, where it has a seal, as it was written.

    Raises:
        ArtifactError: it is not.
    """
    with sealed.reading(path):
        has_seal = sealed.SEAL in tensor_file.read_metadata(path)
    if has_seal:
        with torch.device("cpu"):  # transformers calls this where all new tensors are on meta
            read_shard(Path(path))
