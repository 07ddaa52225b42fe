"""Quantization-aware training: a float model becomes one that trains with rounding, and that one
becomes the same kind of quantized model that calibration gives.

`octavo.qat.lightning` and `octavo.qat.transformers` hold callbacks for those trainers.
"""

from octavo.qat.distillation import DistillationLoss
from octavo.qat.fake_quantize import (
    FakeQuantize,
    LearnedFakeQuantize,
    ObservedFakeQuantize,
    WeightFakeQuantize,
)
from octavo.qat.model import QATModel
from octavo.qat.prepare import prepare_qat
from octavo.qat.schedule import Phase, Schedule

__all__ = [
    "DistillationLoss",
    "FakeQuantize",
    "LearnedFakeQuantize",
    "ObservedFakeQuantize",
    "Phase",
    "QATModel",
    "Schedule",
    "WeightFakeQuantize",
    "prepare_qat",
]
