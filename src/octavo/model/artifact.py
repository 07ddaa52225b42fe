"""The one-file artifact, ``.octavo``: a safetensors file whose metadata holds the graph.

====================  =============================================================================
metadata              what
====================  =============================================================================
``format``            ``"octavo"``
``version``           of this layout; older ones are read too, a newer one is refused
``graph``             JSON, see `octavo.graph.as_json`: operators from an allow-list, no code
``plan``              JSON, see `octavo.plan`
``signature``         JSON, see `octavo.graph.batches.Signature`: names of the model's arguments
``provenance``        JSON: versions, target, number of calibration batches
``samples``           JSON, if there: inputs of which the file holds samples, see `Artifact`
``sha256``            over all of the above and the tensors
====================  =============================================================================

Nothing in a file is ever executed or unpickled. A file is written whole or not at all, and read
once: a loaded model is its own, whatever becomes of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from octavo.arguments import PATH, expect
from octavo.errors import ArtifactError, OctavoError
from octavo.graph import as_json, version_1
from octavo.graph.batches import Signature
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.graph import Graph, TensorMeta
from octavo.graph.losses import LOSSES
from octavo.model.files import tensor_file
from octavo.model.files.atomic import replacing
from octavo.model.files.source_file import check_file, reason
from octavo.quantization.plan import Plan

FORMAT, VERSION = "octavo", 2
_UPGRADES = {"1": version_1.upgraded}
_HASHED = ("format", "version", "graph", "plan", "signature", "provenance")
_SAMPLES, _SAMPLE_OF = "samples", "samples of "  # its key, and what stands before a tensor's name


@dataclass(frozen=True)
class Artifact:
    """All that a file holds.

    Attributes:
        graph, plan, signature, provenance: of the model.
        samples: a batch of calibration data on which lowering compares runtimes with the oracle, a
            tensor for each input; ``None`` where the file has none.
    """

    graph: Graph
    plan: Plan
    signature: Signature
    provenance: Mapping[str, Any]
    samples: tuple[Tensor, ...] | None = None


def save(artifact: Artifact, path: str | os.PathLike[str]) -> None:
    """Write a file, whole or not at all.

    Raises:
        ArtifactError: the folder is missing or cannot be written to.
    """
    expect(PATH, path=path)
    metadata = metadata_of(artifact)
    content = dict(artifact.graph.constants)
    if artifact.samples is not None:
        names = [i.name for i in artifact.graph.inputs]
        metadata[_SAMPLES] = json.dumps(names)
        content |= {f"{_SAMPLE_OF}{n}": t for n, t in zip(names, artifact.samples, strict=True)}
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in content.items()
    }
    metadata["sha256"] = _digest(metadata, tensors)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # a full disk, for one
            raise ArtifactError(f"cannot write {os.fspath(path)}: {error}") from error


def metadata_of(artifact: Artifact) -> dict[str, str]:
    """All but the tensors, as text."""
    signature = asdict(artifact.signature)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "graph": json.dumps(as_json.to_json(artifact.graph)),
        "plan": artifact.plan.to_json(),
        "signature": json.dumps(
            {name: value for name, value in signature.items() if value is not None}
        ),
        "provenance": json.dumps(dict(artifact.provenance)),
    }


def load(path: str | os.PathLike[str]) -> Artifact:
    """Read a file and check every part of it.

    Raises:
        ArtifactError: there is no such file, or it is not an artifact, is truncated or altered,
            holds an operator that is not allowed, or was written by a newer Octavo.
    """
    try:
        metadata, tensors = _read(Path(path))
        _check_header(metadata, (*_HASHED, "sha256"))
        if metadata["sha256"] != _digest(metadata, tensors):
            raise ArtifactError(
                "its content does not match its checksum: it was damaged or altered"
            )
        samples = _samples(metadata, tensors)
        content = from_metadata(metadata, tensors)
        return content if samples is None else _with_samples(content, samples)
    except OctavoError as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be loaded: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{os.fspath(path)} is malformed: {error}") from None


def from_metadata(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Artifact:
    """What `metadata_of` wrote, around these tensors, each part checked.

    Raises:
        ArtifactError: a part is missing, malformed, or does not fit the tensors.
    """
    _check_header(metadata, _HASHED)
    upgrade = _UPGRADES.get(metadata["version"], lambda graph: graph)
    graph = as_json.from_json(json.loads(metadata["graph"]), tensors, upgrade)
    plan = Plan.from_json(metadata["plan"])
    signature = _signature(json.loads(metadata["signature"]), graph)
    provenance = json.loads(metadata["provenance"])
    if not isinstance(provenance, dict):
        raise ArtifactError("its provenance is malformed")
    return Artifact(graph, plan, signature, provenance)


def _samples(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The samples, by input, taken out of the tensors; ``None`` where there are none."""
    if _SAMPLES not in metadata:
        return None
    names = json.loads(metadata[_SAMPLES])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"its samples {names!r} are malformed")
    return {name: tensors.pop(f"{_SAMPLE_OF}{name}") for name in names}


def _with_samples(content: Artifact, samples: Mapping[str, Tensor]) -> Artifact:
    wanted = {entry.name: entry.meta for entry in content.graph.inputs}
    if samples.keys() != wanted.keys():
        raise ArtifactError(f"its samples are of {list(samples)}, its inputs {list(wanted)}")
    for name, tensor in samples.items():
        meta = TensorMeta.of(tensor)
        if not meta.fits(wanted[name]):
            raise ArtifactError(f"its samples of {name!r} are {meta}; expected {wanted[name]}")
    return replace(content, samples=tuple(samples[name] for name in wanted))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        check_file(path)
        metadata, tensors = tensor_file.read(path)
    except OSError as error:
        raise ArtifactError(reason(error)) from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"it is not an Octavo artifact, or is truncated ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ArtifactError("it is a safetensors file, but not an Octavo artifact")
    return metadata, tensors


def _signature(data: Any, graph: Graph) -> Signature:
    """The signature, without labels that the model was captured without: older files name them."""
    names, required = data["names"], data["required"]
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or type(required) is not int or not 0 <= required <= len(names):
        raise ArtifactError(f"its signature {data} is malformed")
    kept = (n for n in names if n in graph.arguments or n not in LABEL_ARGUMENTS)
    config, main_input = data.get("config"), data.get("main_input")
    losses = data.get("losses", [])
    described = isinstance(config, dict | None) and isinstance(main_input, str | None)
    if not described or not isinstance(losses, list) or not LOSSES.keys() >= set(losses):
        raise ArtifactError(f"its signature {data} is malformed")
    return Signature(tuple(kept), required, config, main_input, tuple(losses))


def _check_header(metadata: Mapping[str, str], needed: Sequence[str]) -> None:
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise ArtifactError(f"it lacks {missing}: it is not an Octavo artifact")
    if not metadata["version"].isdecimal() or int(metadata["version"]) not in range(1, VERSION + 1):
        raise ArtifactError(
            f"it has version {metadata['version']} of the format, this Octavo reads up to "
            f"{VERSION}: upgrade octavo"
        )


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in (*_HASHED, *([_SAMPLES] if _SAMPLES in metadata else [])):
        digest.update(f"{key}:{len(metadata[key])}:{metadata[key]}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}:".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
