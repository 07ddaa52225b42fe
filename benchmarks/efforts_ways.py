"""The ways in which Octavo quantizes for `efforts`: recipes, methods alone, and as peers do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import octavo
from benchmarks.tasks import LeftInFloat, Task

Settings = Mapping[str, Any]  # of `octavo.quantize`
FLOAT, FAST, BEST = "fp32", "effort fast", "effort best"
EFFORTS: Mapping[str, Settings] = {
    FAST: {},
    "effort balanced": {"effort": "balanced"},
    BEST: {"effort": "best"},
}
METHODS: Mapping[str, Settings] = {
    "histogram alone": {"qconfig": octavo.static_qconfig(observer=octavo.Histogram())},
    "mse alone": {"qconfig": octavo.static_qconfig(observer=octavo.MSE())},
    "entropy alone": {"qconfig": octavo.static_qconfig(observer=octavo.Entropy())},
    "no bias correction": {"bias_correction": False},
    "gptq alone": {"weights": [octavo.GPTQ()]},
    "adaround alone": {"weights": [octavo.AdaRound()]},
    "reconstruction alone": {"weights": [octavo.Reconstruction()]},
}
LARGEST_TIME = {"effort balanced": 2.0, BEST: 30.0}  # times that of `FAST`


def ours(
    net: nn.Module, calibration: list[Tensor], settings: Settings, kept: list[str]
) -> nn.Module:
    """In exact arithmetic; the steps that were kept are put into a list."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(net, calibration=calibration, scope="model", progress=False, **settings)
    kept += [step["step"] for step in q.provenance.get("steps", ()) if step["kept"]]
    return q.lower("reference")


def as_peers(left: LeftInFloat) -> dict[str, Settings]:
    """The efforts with what peers leave in float in float too, by their names."""
    mapping = octavo.QConfigMapping()
    for operator in left.operators:
        mapping.set_object_type(operator, None)
    return {
        like_peers(way, left): {**settings, "qconfig": mapping} for way, settings in EFFORTS.items()
    }


def like_peers(way: str, left: LeftInFloat | None) -> str:
    """The name of an effort with the same layers in int8 as peers have."""
    return way if left is None else f"{way}, float {left.what}"


def ways_of(task: Task, draw: int) -> dict[str, Settings]:
    """Octavo's ways, those of its efforts alone in further draws."""
    alike = {} if task.left is None else as_peers(task.left)
    return {**EFFORTS, **alike} if draw else {**EFFORTS, **METHODS, **alike}
