"""Octavo quantizes trained PyTorch models: smaller, faster, with every decision explained.

In all examples ``model`` is a trained float model, ``loader`` has batches of its inputs and labels,
and ``q`` is the quantized model:

>>> import octavo
>>> q = octavo.quantize(model, calibration=loader)
>>> print(str(q.summary()).splitlines()[0])
100 % of the multiply-adds in int8 on torch (target x86)
>>> q.save("model.octavo")
>>> m = octavo.load("model.octavo")
"""

from octavo.errors import OctavoError, OctavoWarning
from octavo.flow.blockwise.folder import quantize_folder
from octavo.flow.convert import convert
from octavo.flow.quantize import quantize
from octavo.graph.capture.capture import capture
from octavo.graph.pixels import Pixels
from octavo.measuring.bench import Bench, bench
from octavo.measuring.comparison import compare
from octavo.measuring.comparison_table import Comparison
from octavo.measuring.layers import (
    Distribution,
    LayerErrors,
    Sensitivity,
    distributions,
    layer_errors,
    sensitivity,
)
from octavo.measuring.multiple_choice import MultipleChoice, Question, multiple_choice
from octavo.measuring.next_tokens import perplexity
from octavo.measuring.parity import Parity, verify
from octavo.model import artifact, nn
from octavo.model.executorch_file import ExecutorchFile, export_executorch
from octavo.model.language.checkpoints import read_checkpoint, write_checkpoint
from octavo.model.model import QuantizedModel
from octavo.model.onnx_file import export_onnx
from octavo.model.package import export_package, load_package
from octavo.model.tflite_file import TfliteFile, export_tflite
from octavo.model.verbs import load, lower, save, summary
from octavo.numerics import observers
from octavo.numerics.affine import QParams
from octavo.numerics.observers import (
    MSE,
    Entropy,
    FixedRange,
    Histogram,
    MinMax,
    MovingAverageMinMax,
    Percentile,
)
from octavo.numerics.scheme import Scheme
from octavo.qat import QATModel, prepare_qat
from octavo.qat.reconstruction import Reconstruction
from octavo.quantization import targets
from octavo.quantization.calibrate import Calibrated, Calibration, calibrate
from octavo.quantization.plan import Plan, plan
from octavo.quantization.qconfig import QConfig, QConfigMapping, QSpec
from octavo.quantization.targets import (
    dynamic_qconfig,
    qat_qconfig,
    static_qconfig,
    weight_only_qconfig,
)
from octavo.quantization.weights import (
    AWQ,
    GPTQ,
    HQQ,
    AdaRound,
    BiasCorrection,
    Clip,
    Rotation,
    SmoothQuant,
    WeightMethod,
    correct_biases,
)
from octavo.reporting import Report, plots, report
from octavo.runtimes.cpu import host_target
from octavo.searching import SearchResult, search
from octavo.version import __version__

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "MSE",
    "AdaRound",
    "Bench",
    "BiasCorrection",
    "Calibrated",
    "Calibration",
    "Clip",
    "Comparison",
    "Distribution",
    "Entropy",
    "ExecutorchFile",
    "FixedRange",
    "Histogram",
    "LayerErrors",
    "MinMax",
    "MovingAverageMinMax",
    "MultipleChoice",
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
    "Question",
    "Reconstruction",
    "Report",
    "Rotation",
    "Scheme",
    "SearchResult",
    "Sensitivity",
    "SmoothQuant",
    "TfliteFile",
    "WeightMethod",
    "__version__",
    "artifact",
    "bench",
    "calibrate",
    "capture",
    "compare",
    "convert",
    "correct_biases",
    "distributions",
    "dynamic_qconfig",
    "export_executorch",
    "export_onnx",
    "export_package",
    "export_tflite",
    "host_target",
    "layer_errors",
    "load",
    "load_package",
    "lower",
    "multiple_choice",
    "nn",
    "observers",
    "perplexity",
    "plan",
    "plots",
    "prepare_qat",
    "qat_qconfig",
    "quantize",
    "quantize_folder",
    "read_checkpoint",
    "report",
    "save",
    "search",
    "sensitivity",
    "static_qconfig",
    "summary",
    "targets",
    "verify",
    "weight_only_qconfig",
    "write_checkpoint",
]
