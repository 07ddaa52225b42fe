"""What was tried, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from octavo.quantization.qconfig import QConfig, QConfigMapping


@dataclass(frozen=True)
class Candidate:
    """One way to quantize the model.

    Attributes:
        name: what it is, and its key: a search that is resumed does not try it again.
        reason: why it is tried.
        mode: as for `octavo.quantize`.
        qconfig: for all layers; ``None`` is the target's default.
        in_float: layers that stay float.
        bfloat16: whether these compute in bfloat16, and not in float32.
        trained: whether it is trained with rounding.
    """

    name: str
    reason: str
    mode: str
    qconfig: QConfig | None = None
    in_float: tuple[str, ...] = ()
    bfloat16: bool = False
    trained: bool = False

    @property
    def mapping(self) -> QConfigMapping:
        """The rules that say so."""
        mapping = QConfigMapping()
        if self.qconfig is not None:
            mapping.set_global(self.qconfig)
        for layer in self.in_float:
            mapping.set_module_name(layer, torch.bfloat16 if self.bfloat16 else None)
        return mapping


@dataclass(frozen=True)
class Trial:
    """A candidate that was measured.

    Attributes:
        name, reason: the candidate's.
        in_float: layers that stay float.
        metric: of the quantized model.
        drop: what the metric lost against float.
        size_bytes: of the file.
        over_fp32: latency over that of fp32, the median ratio of interleaved rounds.
        int8: layers whose kernels run on integers.
        layers: layers that could.
        seconds: that the trial took.
        error: why it failed, ``""`` if it did not.
    """

    name: str
    reason: str
    in_float: tuple[str, ...]
    metric: float | None = None
    drop: float | None = None
    size_bytes: int | None = None
    over_fp32: float | None = None
    int8: int = 0
    layers: int = 0
    seconds: float = 0.0
    error: str = ""

    def meets(self, max_drop: float) -> bool:
        """Whether it lost no more than that."""
        return self.drop is not None and self.drop <= max_drop

    def cost(self, objective: str) -> tuple[float, float]:
        """What is to be small: latency, then size, or the other way round."""
        latency = float("inf") if self.over_fp32 is None else self.over_fp32
        size = float("inf") if self.size_bytes is None else float(self.size_bytes)
        return (size, latency) if objective == "smallest" else (latency, size)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
