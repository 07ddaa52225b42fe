"""Octavo quantizes trained PyTorch models: smaller, faster, with every decision explained.

>>> import octavo
>>> q = octavo.quantize(model, calibration=loader)        # doctest: +SKIP
>>> print(q.summary())                                    # doctest: +SKIP
>>> q.save("model.octavo")                                # doctest: +SKIP
>>> m = octavo.load("model.octavo")                       # doctest: +SKIP
"""

from octavo import plots
from octavo.affine import QParams
from octavo.analysis import (
    Distribution,
    LayerErrors,
    Sensitivity,
    distributions,
    layer_errors,
    sensitivity,
)
from octavo.bench import Bench, bench
from octavo.calibrate import Calibrated, Calibration, calibrate
from octavo.capture import capture
from octavo.compare import compare
from octavo.comparison import Comparison
from octavo.errors import OctavoError, OctavoWarning
from octavo.model import QuantizedModel, load
from octavo.observers import (
    MSE,
    Entropy,
    FixedRange,
    Histogram,
    MinMax,
    MovingAverageMinMax,
    Percentile,
)
from octavo.onnx_file import export_onnx
from octavo.package import export_package, load_package
from octavo.parity import Parity, verify
from octavo.pixels import Pixels
from octavo.plan import Plan, plan
from octavo.qat import QATModel, prepare_qat
from octavo.qconfig import QConfig, QConfigMapping, QSpec
from octavo.quantize import convert, quantize
from octavo.report import Report, report
from octavo.runtimes.cpu import host_target
from octavo.scheme import Scheme
from octavo.search import SearchResult, search
from octavo.targets import dynamic_qconfig, qat_qconfig, static_qconfig, weight_only_qconfig
from octavo.version import __version__
from octavo.weights import correct_biases

__all__ = [
    "MSE",
    "Bench",
    "Calibrated",
    "Calibration",
    "Comparison",
    "Distribution",
    "Entropy",
    "FixedRange",
    "Histogram",
    "LayerErrors",
    "MinMax",
    "MovingAverageMinMax",
    "OctavoError",
    "OctavoWarning",
    "Parity",
    "Percentile",
    "Pixels",
    "Plan",
    "QATModel",
    "QConfig",
    "QConfigMapping",
    "QParams",
    "QSpec",
    "QuantizedModel",
    "Report",
    "Scheme",
    "SearchResult",
    "Sensitivity",
    "__version__",
    "bench",
    "calibrate",
    "capture",
    "compare",
    "convert",
    "correct_biases",
    "distributions",
    "dynamic_qconfig",
    "export_onnx",
    "export_package",
    "host_target",
    "layer_errors",
    "load",
    "load_package",
    "plan",
    "plots",
    "prepare_qat",
    "qat_qconfig",
    "quantize",
    "report",
    "search",
    "sensitivity",
    "static_qconfig",
    "verify",
    "weight_only_qconfig",
]
