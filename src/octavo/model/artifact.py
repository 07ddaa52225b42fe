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
``tunings``           JSON, if there: how the model runs fastest on which CPU, see
                      `octavo.runtimes.tuning`
``sha256``            over all of the above and the tensors
====================  =============================================================================

Nothing in a file is ever executed or unpickled. A file is written whole or not at all, and read
once: a loaded model is its own, whatever becomes of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from octavo.arguments import PATH, expect
from octavo.errors import ArtifactError
from octavo.graph import as_json, version_1
from octavo.graph.batches import Signature
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.graph import Graph, TensorMeta
from octavo.graph.losses import LOSSES
from octavo.model import tunings
from octavo.model.files import sealed
from octavo.quantization.plan import Plan

FORMAT, VERSION = sealed.FORMAT, 2
_VERSIONS = range(1, VERSION + 1)
_UPGRADES = {"1": version_1.upgraded}
_HASHED = ("format", "version", "graph", "plan", "signature", "provenance")
TUNINGS = "tunings"
_SAMPLES, _SAMPLE_OF = "samples", "samples of "  # its key, and what stands before a tensor's name


@dataclass(frozen=True)
class Artifact:
    """All that a file holds.

    Attributes:
        graph, plan, signature, provenance: of the model.
        samples: a batch of calibration data on which lowering compares runtimes with the oracle, a
            tensor for each input; ``None`` where the file has none.
        tunings: kind of CPU -> how the model runs fastest there.
    """

    graph: Graph
    plan: Plan
    signature: Signature
    provenance: Mapping[str, Any]
    samples: tuple[Tensor, ...] | None = None
    tunings: tunings.Tunings = field(default_factory=dict)


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
    sealed.write(path, metadata, content, sealed_keys(metadata))


def metadata_of(artifact: Artifact) -> dict[str, str]:
    """All but the tensors, as text.

    Args:
        artifact: what a file is to hold.
    """
    signature = asdict(artifact.signature)
    tuned = {TUNINGS: tunings.to_json(artifact.tunings)} if artifact.tunings else {}
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "graph": json.dumps(as_json.to_json(artifact.graph)),
        "plan": artifact.plan.to_json(),
        "signature": json.dumps(
            {name: v for name, v in signature.items() if v is not None and v is not False}
        ),
        "provenance": json.dumps(dict(artifact.provenance)),
        **tuned,
    }


def load(path: str | os.PathLike[str]) -> Artifact:
    """Read a file and check every part of it.

    Raises:
        ArtifactError: there is no such file, or it is not an artifact, is truncated or altered,
            holds an operator that is not allowed, or was written by a newer Octavo.
    """
    with sealed.reading(path):
        metadata, tensors = sealed.read(path)
        if "parts" in metadata:
            raise ArtifactError(
                "it holds parts of a model, whose own code is not in it: octavo.load(path, "
                "into=model) puts them into the float model, which may be on the meta device"
            )
        sealed.check_header(metadata, (*_HASHED, sealed.SEAL), _VERSIONS)
        sealed.check_seal(metadata, tensors, sealed_keys(metadata))
        samples = _samples(metadata, tensors)
        content = from_metadata(metadata, tensors)
        return content if samples is None else _with_samples(content, samples)


def from_metadata(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Artifact:
    """What `metadata_of` wrote, around these tensors, each part checked.

    Args:
        metadata: texts by their keys.
        tensors: the constants of the graph, by name.

    Raises:
        ArtifactError: a part is missing, malformed, or does not fit the tensors.
    """
    sealed.check_header(metadata, _HASHED, _VERSIONS)
    upgrade = _UPGRADES.get(metadata["version"], lambda graph: graph)
    graph = as_json.from_json(json.loads(metadata["graph"]), tensors, upgrade)
    plan = Plan.from_json(metadata["plan"])
    signature = _signature(json.loads(metadata["signature"]), graph)
    provenance = json.loads(metadata["provenance"])
    if not isinstance(provenance, dict):
        raise ArtifactError("its provenance is malformed")
    tuned = tunings.from_json(metadata.get(TUNINGS, "[]"), graph)
    return Artifact(graph, plan, signature, provenance, tunings=tuned)


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


def sealed_keys(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The keys under the seal, in order.

    Args:
        metadata: of a file.
    """
    return (*_HASHED, *(key for key in (_SAMPLES, TUNINGS) if key in metadata))
