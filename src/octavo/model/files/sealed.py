"""A safetensors file of Octavo's: texts and tensors, with a checksum over both.

Tested in tests/model/test_artifact.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from octavo.errors import ArtifactError, OctavoError
from octavo.model.files import tensor_file
from octavo.model.files.atomic import replacing
from octavo.model.files.source_file import check_file, reason

Read = TypeVar("Read")

FORMAT = "octavo"
SEAL = "sha256"


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    keys: Sequence[str],
) -> None:
    """Write a file, whole or not at all, sealed over the metadata of these keys and all tensors.

    Raises:
        ArtifactError: it cannot be written.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    seal = {SEAL: checksum(metadata, plain, keys)}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, {**metadata, **seal})
        except SafetensorError as error:  # a full disk, for one
            raise ArtifactError(f"cannot write {os.fspath(path)}: {error}") from error


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever is wrong with a file that is read inside becomes an error that names it.

    Raises:
        ArtifactError: something was.
    """
    try:
        yield
    except OctavoError as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be loaded: {error}") from None
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ArtifactError(f"{os.fspath(path)} is malformed: {error}") from None


def read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file; the seal is not looked at yet.

    Raises:
        ArtifactError: there is no such file, or it is not of this format.
    """
    metadata, tensors = _from_file(path, tensor_file.read)
    _check_format(metadata)
    return metadata, tensors


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata alone; the seal is not looked at.

    Raises:
        ArtifactError: as `read`.
    """
    metadata = _from_file(path, tensor_file.read_metadata)
    _check_format(metadata)
    return metadata


def _from_file(path: str | os.PathLike[str], reader: Callable[[Path], Read]) -> Read:
    try:
        check_file(Path(path))
        return reader(Path(path))
    except OSError as error:
        raise ArtifactError(reason(error)) from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if _is_of_torch_save(Path(path)):
            raise ArtifactError(_OF_TORCH_SAVE) from None
        raise ArtifactError(f"it is not an Octavo artifact, or is truncated ({error})") from None


_OF_TORCH_SAVE = (
    "it is not an Octavo artifact; it may be of torch.save: build the network, "
    "model.load_state_dict(torch.load(path)), and octavo.quantize makes it small"
)


def _is_of_torch_save(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_format(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ArtifactError("it is a safetensors file, but not an Octavo artifact")


def check_header(metadata: Mapping[str, str], keys: Sequence[str], versions: range) -> None:
    """Refuse metadata that lacks a key, or is of a version that is not known.

    Raises:
        ArtifactError: it does.
    """
    missing = [key for key in keys if key not in metadata]
    if missing:
        raise ArtifactError(f"it lacks {missing}: it is not an Octavo artifact")
    version = metadata["version"]
    if not version.isdecimal() or int(version) not in versions:
        reads = f"up to {versions[-1]}: upgrade octavo"
        if version.isdecimal() and int(version) < versions[0]:
            reads = f"none below {versions[0]}: write it anew, from the float model"
        raise ArtifactError(f"it has version {version} of the format, this Octavo reads {reads}")


def check_seal(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], keys: Sequence[str]
) -> None:
    """Refuse what is not as it was sealed.

    Raises:
        ArtifactError: it was damaged or altered.
    """
    if metadata[SEAL] != checksum(metadata, tensors, keys):
        raise ArtifactError("its content does not match its checksum: it was damaged or altered")


def checksum(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], keys: Sequence[str]
) -> str:
    """Over the metadata of these keys, in this order, and all tensors."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{key}:{len(metadata[key])}:{metadata[key]}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}:".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
