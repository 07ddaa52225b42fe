"""The summary of a model with quantized parts: what each does, and what stays in Python.

Tested in tests/model/test_parts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from octavo.display import Table, Tabular
from octavo.model.model import QuantizedModel
from octavo.model.parts import Part, parts_of
from octavo.model.summary import Summary


@dataclass(frozen=True)
class PartSummary:
    """One part.

    Attributes:
        kind: the class in whose place it stands.
        runs: what it does, in words.
        size_mb, float_mb: megabytes (10**6 bytes) of its tensors, and of the same in float32.
        summary: of a region, what runs in int8 in it, what does not, and why.
    """

    kind: str
    runs: str
    size_mb: float
    float_mb: float
    summary: Summary | None = None


@dataclass(frozen=True)
class PartsSummary(Tabular):
    """What became of a model.

    Attributes:
        model: name of its class.
        parts: the quantized parts, by path.
        rest: what stays in Python and has weights, path -> name of the class.
        rest_mb: megabytes of the tensors that stay in Python.
    """

    model: str
    parts: Mapping[str, PartSummary]
    rest: Mapping[str, str]
    rest_mb: float

    @property
    def size_mb(self) -> float:
        """Megabytes of all its tensors."""
        return self.rest_mb + sum(part.size_mb for part in self.parts.values())

    @property
    def float_mb(self) -> float:
        """Megabytes of all, had no weight been quantized."""
        return self.rest_mb + sum(part.float_mb for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return asdict(self) | {"size_mb": self.size_mb, "float_mb": self.float_mb}

    def table(self) -> Table:
        rows = [
            (path, part.kind, part.runs, f"{part.size_mb:.2f} MB")
            for path, part in self.parts.items()
        ]
        rows += [(path, kind, "float, in Python", "") for path, kind in self.rest.items()]
        title = (
            f"{self.model}: {len(self.parts)} quantized parts, the rest in Python\n"
            f"tensors: {self.size_mb:.2f} MB, {self.float_mb:.2f} MB in float32"
        )
        return Table(("part", "was", "runs", "size"), tuple(rows), title)


def summarize_parts(model: nn.Module) -> PartsSummary:
    """The summary of a model with quantized parts."""
    parts = parts_of(model)
    inside = {module for part in parts.values() for module in part.modules()}
    outside = {path: module for path, module in model.named_modules() if module not in inside}
    tensors = {
        id(tensor): tensor.nbytes
        for module in outside.values()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }
    rest = {
        path: type(module).__name__
        for path, module in outside.items()
        if any(p is not None and p.dim() > 1 for p in module._parameters.values())
    }
    told = {path: _told(part) for path, part in parts.items()}
    return PartsSummary(type(model).__name__, told, rest, sum(tensors.values()) / 1e6)


def _told(part: Part) -> PartSummary:
    if isinstance(part, QuantizedModel):
        summary = part.summary()
        words = f"{summary.int8} of {summary.layers} layers {summary.runs}"
        kind = part.place.kind if part.place is not None else "QuantizedModel"
        return PartSummary(kind, words, summary.size_mb, summary.float_mb, summary)
    size = sum(tensor.nbytes for tensor in part.tensors().values())
    floats = sum(4 * tensor.numel() for tensor in part.dequantized().values())
    return PartSummary(type(part).__name__, _OF_MODULE[part.runs], size / 1e6, floats / 1e6)


_OF_MODULE = {"dynamic": "dynamic int8", "weight_only": "integer weights"}
