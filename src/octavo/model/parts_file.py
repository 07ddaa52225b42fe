"""The ``.octavo`` file of a model with quantized parts: its parts, and the tensors of the rest.

====================  =============================================================================
metadata              what
====================  =============================================================================
``format``            ``"octavo"``
``version``           of this layout, ``"3"``: files of one graph have their own, `artifact`
``model``             name of the model's class, for messages
``parts``             JSON: path -> the part. A region is ``{"kind": "region", "of": name of the
                      class in whose place it stands, "floats": the tensors that this had, "calls":
                      how often it is called, "graph",
                      "plan", "signature", "provenance"}``; a module is ``{"kind": "module"}`` and
                      what its ``describe()`` says
``python``            JSON: path of a module outside of the parts -> its multiply-adds in a call; or
                      null
``sha256``            over all of the above and the tensors
====================  =============================================================================

Tensors of a part stand under its path. All others are those of the model outside of its parts, by
their names there: so that the model to load them into may be on the meta device. Nothing is pickled
and nothing executed, and all is checked before the user's model is touched.

Tested in tests/model/test_parts_file.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import ArtifactError
from octavo.graph.graph import TensorMeta
from octavo.model import artifact
from octavo.model.artifact import Artifact
from octavo.model.files import sealed
from octavo.model.language.decoding import with_native_steps
from octavo.model.language.saving import saved_by_transformers
from octavo.model.loading import model_of
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule, from_description
from octavo.model.nn.one_operator import OneOperator
from octavo.model.parts import Part, parts_of, work_around
from octavo.model.place import Place
from octavo.model.tree import near, outside, put

VERSION = 3
KEYS = ("format", "version", "model", "parts", "tied", "python")
_OF_REGION = ("graph", "plan", "signature", "provenance")


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        model: name of the model's class.
        regions: path -> what its file would hold, were it a model of its own.
        places: path of a region -> where it stands.
        modules: path -> the quantized module.
        rest: the tensors outside of the parts, by name.
    """

    model: str
    regions: Mapping[str, Artifact]
    places: Mapping[str, Place]
    modules: Mapping[str, QuantizedModule]
    rest: Mapping[str, Tensor]

    @property
    def paths(self) -> list[str]:
        """Of all parts."""
        return [*self.regions, *self.modules]

    def described(self) -> dict[str, str]:
        """Each part in words, by its path."""
        regions = {
            path: f"a region in place of a {self.places[path].kind}, {region.plan.mode}, target "
            f"{region.plan.target}"
            for path, region in self.regions.items()
        }
        return regions | {path: str(module) for path, module in self.modules.items()}


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a file, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    parts = parts_of(model)
    tensors = dict(_rest(model, parts.values()))
    for at, part in parts.items():
        own = part.graph.constants if isinstance(part, QuantizedModel) else part.tensors()
        tensors |= {f"{at}.{name}": tensor for name, tensor in own.items()}
    metadata = {
        "format": sealed.FORMAT,
        "version": str(VERSION),
        "model": type(model).__name__,
        "parts": json.dumps({at: _described(part) for at, part in parts.items()}),
        "tied": json.dumps(tied := _tied(tensors)),
        "python": json.dumps(work_around(model)),
    }
    own = {name: tensor for name, tensor in tensors.items() if name not in tied}
    sealed.write(path, metadata, own, KEYS)


def read(path: str | os.PathLike[str]) -> Content:
    """Read a file, and check every part of it.

    Raises:
        ArtifactError: it is damaged, altered, hostile, or holds one graph and no parts.
    """
    with sealed.reading(path):
        metadata, tensors = sealed.read(path)
        if "parts" not in metadata:
            raise ArtifactError("it holds one graph, which needs no model: octavo.load(path)")
        versions = range(VERSION, VERSION + 1)
        sealed.check_header(metadata, (*KEYS, sealed.SEAL), versions)
        sealed.check_seal(metadata, tensors, KEYS)
        tied = json.loads(metadata["tied"])
        tensors |= {name: tensors[first] for name, first in tied.items()}
        around = _around(json.loads(metadata["python"]))
        content = _content(metadata["model"], json.loads(metadata["parts"]), tensors, around)
        for at, module in content.modules.items():
            shared = {*tied, *tied.values()} & {f"{at}.{name}" for name in module.tensors()}
            if shared and isinstance(module, OneOperator):
                module.keep()
        return content


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors whose memory another holds, which comes before them -> its name."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, tensor in tensors.items():
        memory = (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(memory, name) != name:
            tied[name] = first[memory]
    return tied


def holds_parts(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of parts.

    Raises:
        ArtifactError: there is no such file, or it is not of Octavo.
    """
    with sealed.reading(path):
        return "parts" in sealed.metadata_of(path)


def skeleton(content: Content) -> nn.Module:
    """The regions of a file at their paths, in a module that does nothing."""
    root = nn.Module()
    for path, region in content.regions.items():
        *around, name = path.split(".")
        owner = root
        for part in around:
            owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        owner._modules[name] = QuantizedModel.of(
            region, "reference", check=False, place=content.places[path]
        )
    return root


def put_into(model: nn.Module, content: Content, runtime: str | None, check: bool) -> None:
    """Put the parts of a file into a float model, in place, and give the rest its tensors.

    Raises:
        ArtifactError: the model is another one; it is left as it was.
        RuntimeUnavailable: the runtime cannot run a region here.
    """
    modules = dict(model.named_modules())
    _check_fits(model, modules, content)
    parts: dict[str, Part] = dict(content.modules)
    for path, region in content.regions.items():
        known = content.places[path]
        place = replace(Place.of(path, modules[path], known.calls), around=known.around)
        parts[path] = model_of(region, runtime, check, f"its region {path!r}", place)
    for path, part in parts.items():
        put(model, modules[path], part)
    _fill(model, content.rest)
    with_native_steps(model)
    saved_by_transformers(model)
    model.eval()


def _described(part: Part) -> dict[str, Any]:
    if isinstance(part, QuantizedModule):
        return {"kind": "module", "module": part.describe()}
    place = part.place or Place("", "")
    floats = {name: [meta.dtype, *meta.shape] for name, meta in place.tensors.items()}
    texts = artifact.metadata_of(part.content())
    own = {key: json.loads(texts[key]) for key in (*_OF_REGION, artifact.TUNINGS) if key in texts}
    return {"kind": "region", "of": place.kind, "floats": floats, "calls": place.calls, **own}


def _around(counts: Any) -> dict[str, int] | None:
    if counts is None:
        return None
    for path, count in counts.items():
        if type(count) is not int or count < 0:
            raise ArtifactError(f"its module {path!r} does {count!r} multiply-adds")
    return dict(counts)


def _content(
    model: str, parts: Any, tensors: dict[str, Tensor], around: Mapping[str, int] | None
) -> Content:
    regions, places, modules = {}, {}, {}
    for path, described in parts.items():
        own = {
            name.removeprefix(f"{path}."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(f"{path}.")
        }
        if described["kind"] == "module":
            modules[path] = from_description(described["module"], own)
        elif described["kind"] == "region":
            texts = {key: json.dumps(described[key]) for key in _OF_REGION}
            if artifact.TUNINGS in described:
                texts[artifact.TUNINGS] = json.dumps(described[artifact.TUNINGS])
            header = {"format": sealed.FORMAT, "version": str(artifact.VERSION)}
            regions[path] = artifact.from_metadata(header | texts, own)
            places[path] = replace(_place(path, described), around=around)
        else:
            raise ArtifactError(f"its part {path!r} is of the unknown kind {described['kind']!r}")
    return Content(model, regions, places, modules, tensors)


def _place(path: str, described: Mapping[str, Any]) -> Place:
    floats = {}
    for name, (dtype, *shape) in described["floats"].items():
        if not isinstance(dtype, str) or not all(type(size) is int for size in shape):
            raise ArtifactError(f"the tensor {name!r} of its part {path!r} is malformed")
        floats[name] = TensorMeta(tuple(shape), dtype)
    calls = described["calls"]
    if type(calls) not in (int, float) or not 0 < calls < math.inf:
        raise ArtifactError(f"its part {path!r} is called {calls!r} times")
    return Place(path, str(described["of"]), {}, floats, calls)


def _rest(model: nn.Module, parts: Iterable[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers outside of the parts, those too that a state dict leaves out."""
    for path, module in outside(model, parts):
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor


def _check_fits(model: nn.Module, modules: Mapping[str, nn.Module], content: Content) -> None:
    """Refuse a model that is not the one that was quantized.

    Raises:
        ArtifactError: it names the first module or tensor that differs.
    """
    kind = type(model).__name__
    quantized = next(iter(parts_of(model)), None)
    if quantized is not None:
        raise ArtifactError(f"the model is quantized already, at {quantized!r}: give the float one")
    for path in content.paths:
        if path not in modules or not path:
            raise ArtifactError(
                f"the {kind} has no module {path!r}, which the file has a part for: it was made of "
                f"another {content.model}; {near(path, model)}"
            )
        floats = {name: TensorMeta.of(t) for name, t in modules[path].state_dict().items()}
        _same(_floats_of(content, path, floats), floats, f"{path}.", kind)
    taken = [modules[path] for path in content.paths]
    here = {name: TensorMeta.of(tensor) for name, tensor in _rest(model, taken)}
    there = {name: TensorMeta.of(tensor) for name, tensor in content.rest.items()}
    _same(there, here, "", kind)


def _floats_of(
    content: Content, path: str, here: Mapping[str, TensorMeta]
) -> Mapping[str, TensorMeta]:
    """What the float module had that a part stands for."""
    if path in content.places:
        return content.places[path].tensors
    shapes = content.modules[path].float_shapes()
    return {
        name: TensorMeta(shape, here[name].dtype if name in here else "float32")
        for name, shape in shapes.items()
    }


def _same(
    there: Mapping[str, TensorMeta], here: Mapping[str, TensorMeta], prefix: str, kind: str
) -> None:
    for name in dict.fromkeys((*there, *here)):
        if there.get(name) != here.get(name):
            in_file, in_model = there.get(name, "missing"), here.get(name, "missing")
            raise ArtifactError(
                f"{prefix + name!r} is {in_file} in the file, and {in_model} in the {kind}: give "
                "the float model that was quantized, built with the same settings"
            )


def _fill(model: nn.Module, rest: Mapping[str, Tensor]) -> None:
    """Give the model its own tensors; those that are tied stay so."""
    renewed: dict[int, Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in rest.items():
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        table: dict[str, Any] = (
            module._parameters if leaf in module._parameters else module._buffers
        )
        old = table[leaf]
        if _is_writable(old):
            with torch.no_grad():
                old.copy_(tensor)
        else:
            table[leaf] = renewed.setdefault(id(old), _like(old, tensor))


def _is_writable(tensor: Tensor) -> bool:
    """Not on the meta device, of inference mode, or where elements share memory (``expand``)."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    shares = any(size > 1 and step == 0 for size, step in steps)
    return not (tensor.is_meta or tensor.is_inference() or shares)


def _like(old: Tensor, tensor: Tensor) -> Tensor:
    tensor = tensor if old.is_meta else tensor.to(old.device)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor
