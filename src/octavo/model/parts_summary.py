"""The summary of a model with quantized parts: what each does, and what stays in Python.

Tested in tests/model/test_parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from torch import nn

from octavo.display import Table, plain
from octavo.model.coverage import Coverage, FloatLayer, OfCoverage, coverage, megabytes
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule
from octavo.model.parts import Part, parts_of, work_around
from octavo.model.place import Place
from octavo.model.tree import outside


@dataclass(frozen=True)
class PartSummary:
    """One part.

    Attributes:
        kind: the class in whose place it stands.
        runs: what it does, in words.
        coverage: of multiply-adds (a module does not know how many it is called with) and bytes.
    """

    kind: str
    runs: str
    coverage: Coverage


@dataclass(frozen=True)
class PartsSummary(OfCoverage):
    """What became of a model.

    Attributes:
        model: name of its class.
        parts: the quantized parts, by path.
        rest: what stays in Python.
        runtime: what the regions run on; ``""`` without any.
        provenance: of the first region.
        is_counted: whether its multiply-adds are known, and those of all parts: not so for modules
            of `octavo.nn`, which are made without running the model.
    """

    model: str
    parts: Mapping[str, PartSummary]
    rest: Coverage
    runtime: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    is_counted: bool = False

    @property
    def coverage(self) -> Coverage:  # type: ignore[override]  # a field of others
        """Of all together; multiply-adds as far as they are known."""
        return reduce(add, (part.coverage for part in self.parts.values()), self.rest)

    @property
    def headline(self) -> str:
        """What matters most, as in ``"97 % of the multiply-adds in int8"``.

        It says how many layers it does not count, where what stays Python was not counted.
        """
        covered = self.coverage
        if covered.total and self.is_counted:
            return covered.headline
        if covered.total:
            count = len(self.rest.floats)
            layers = f"{count} float layers" if count > 1 else "1 float layer"
            rest = f", not counting {layers} in Python" if count else ""
            return f"{covered.headline} of the graphs{rest}"
        return f"{megabytes(covered.integer_bytes)} of integers for weights"

    @property
    def share(self) -> float | None:
        """The part of all multiply-adds that read integers; ``None`` where not all are known."""
        return self.coverage.share if self.is_counted else None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return {
            "model": self.model,
            "headline": self.headline,
            **self.figures(),
            "parts": {
                path: {"of": part.kind, "runs": part.runs, "size_mb": part.coverage.bytes / 1e6}
                for path, part in self.parts.items()
            },
            "in_python": {layer.name: layer.op for layer in self.rest.floats},
            "float_layers": {layer.name: layer.why for layer in self.coverage.floats},
        }

    def table(self) -> Table:
        rows = [
            (path, part.kind, part.runs, megabytes(part.coverage.bytes))
            for path, part in self.parts.items()
        ]
        rows += [
            (layer.name, layer.op, f"float: {layer.why}", megabytes(layer.bytes))
            for layer in self.rest.floats
        ]
        columns = ("part", "was", "runs", "size")
        return Table(columns, tuple(rows), "\n".join(self._figures()), tuple(self._costs()))

    def __str__(self) -> str:
        parts = (f"  {path} ({part.kind}): {part.runs}" for path, part in self.parts.items())
        return plain("\n".join([*self._figures(), *parts, *self._costs()]), "\n")

    def _figures(self) -> Iterator[str]:
        covered = self.coverage
        count = len(self.parts)
        parts = "1 part" if count == 1 else f"{count} parts"
        yield f"{self.model}, {parts} quantized: {self.headline}"
        yield (
            f"tensors: {self.size_mb:.2f} MB, {covered.integer_bytes / 1e6:.2f} MB of them "
            f"integers; {self.float_mb:.2f} MB in float32"
        )

    def _costs(self) -> Iterator[str]:
        for cost, layers, runtime, why in self.coverage.costs():
            yield f"{cost} in float: {layers}: {f'{runtime}: ' if runtime else ''}{why}"


def summarize_parts(model: nn.Module) -> PartsSummary:
    """The summary of a model with quantized parts."""
    parts = parts_of(model)
    told = {path: _told(path, part) for path, part in parts.items()}
    around = work_around(model)
    rest = _rest(model, parts, around or {})
    regions = [part for part in parts.values() if isinstance(part, QuantizedModel)]
    runtime = ", ".join(dict.fromkeys(region.lowered.runtime for region in regions))
    origin = regions[0].provenance if regions else {}
    return PartsSummary(type(model).__name__, told, rest, runtime, origin, around is not None)


def _rest(model: nn.Module, parts: Mapping[str, Part], around: Mapping[str, int]) -> Coverage:
    counted: set[int] = set()
    size, floats = 0, []
    for path, module in outside(model, parts.values()):
        own = (*module._parameters.values(), *module._buffers.values())
        fresh = [tensor for tensor in own if tensor is not None and id(tensor) not in counted]
        counted |= {id(tensor) for tensor in fresh}
        size += sum(tensor.nbytes for tensor in fresh)
        work, kind = around.get(path, 0), type(module).__name__
        if work or any(tensor.dim() > 1 and tensor.is_floating_point() for tensor in fresh):
            held = sum(tensor.nbytes for tensor in fresh)
            floats.append(FloatLayer(path or kind, kind, _IN_PYTHON, work, held))
    total = sum(layer.multiply_adds for layer in floats)
    return Coverage({"float": total} if total else {}, size, 0, size, len(floats), tuple(floats))


_IN_PYTHON = "it is in no region, and runs in Python"


def _told(path: str, part: Part) -> PartSummary:
    if isinstance(part, QuantizedModel):
        place = part.place or Place(path, "QuantizedModel")
        covered = coverage(part.graph, part.plan, part.lowered, calls=place.calls, path=path)
        runs = f"{covered.headline} on {part.lowered.runtime}"
        return PartSummary(place.kind, runs, covered)
    held = sum(tensor.nbytes for tensor in part.tensors().values())
    inside = [module for module in part.modules() if isinstance(module, QuantizedModule)]
    whole = sum(map(_integer_bytes, inside))  # attention holds them in its projections
    floats = sum(4 * math.prod(shape) for shape in part.float_shapes().values())
    covered = Coverage({}, held, whole, floats, 1)
    return PartSummary(type(part).__name__, _OF_MODULE[part.runs], covered)


def _integer_bytes(module: QuantizedModule) -> int:
    tensors = module.own_tensors()
    return sum(tensors[weight.names[0]].nbytes for weight in module.weights.values())


_OF_MODULE = {"dynamic": "dynamic int8", "weight_only": "integer weights"}
