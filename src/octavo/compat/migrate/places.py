"""Where each name of the old packages has gone: tables, and `place_of`, which reads them.

A name is looked up in its canonical spelling: ``torch.quantization`` and ``torch.nn.quantized`` are
older names of the same modules under ``torch.ao``, and a name that was moved before is read as what
it was, so that a second run finds what the first one found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.compat import numeric_suite, quantization, quantize_fx, tinynn
from octavo.compat.quantization.missing import missing
from octavo.errors import OctavoError

COMPAT = "octavo.compat"
GUIDE = "docs/migrate.md"

# Longest first where one is the beginning of another.
_SPELLINGS = {
    "torch.quantization._numeric_suite_fx": "torch.ao.ns._numeric_suite_fx",
    "torch.quantization._numeric_suite": "torch.ao.ns._numeric_suite",
    "torch.quantization.fx": "torch.ao.quantization.fx",
    "torch.quantization": "torch.ao.quantization",
    "torch.nn.quantized": "torch.ao.nn.quantized",
    "torch.nn.quantizable": "torch.ao.nn.quantizable",
    "torch.nn.intrinsic": "torch.ao.nn.intrinsic",
    "torch.nn.qat": "torch.ao.nn.qat",
    f"{COMPAT}.quantization": "torch.ao.quantization",
    f"{COMPAT}.quantize_fx": "torch.ao.quantization.quantize_fx",
    f"{COMPAT}.numeric_suite": "torch.ao.ns._numeric_suite",
    f"{COMPAT}.tinynn": "tinynn.graph.quantization.quantizer",
}

MODULES: Mapping[str, str] = {
    "torch.ao.quantization": f"{COMPAT}.quantization",
    **{
        f"torch.ao.quantization.{part}": f"{COMPAT}.quantization"
        for part in (
            "fake_quantize",
            "fuse_modules",
            "observer",
            "qconfig",
            "qconfig_mapping",
            "quantize",
            "stubs",
        )
    },
    "torch.ao.quantization.quantize_fx": f"{COMPAT}.quantize_fx",
    "torch.ao.ns._numeric_suite": f"{COMPAT}.numeric_suite",
    "tinynn.graph.quantization.quantizer": f"{COMPAT}.tinynn",
    "tinynn.graph.tracer": f"{COMPAT}.tinynn",
    "tinynn.converter": f"{COMPAT}.tinynn",
}

# What each of them has; a name that is added there is moved from then on.
NAMES: Mapping[str, frozenset[str]] = {
    module.__name__: frozenset(module.__all__)
    for module in (quantization, quantize_fx, numeric_suite, tinynn)
}

# Names whose module stays behind.
_SINGLE = {
    f"torch.ao.nn.quantized.{path}{name}": f"{COMPAT}.quantization.{name}"
    for name in ("FloatFunctional", "QFunctional")
    for path in ("", "modules.", "modules.functional_modules.")
}

_PT2E = (
    "octavo.quantize(model, calibration=loader) captures with torch.export itself, and target= "
    f"takes the quantizer's part; see {GUIDE}"
)
_KERNELS = "kernels are called by octavo.quantize's result; write the float operation"

# What has no place in octavo.compat, which knows of its own modules' names alone: prefix of the
# canonical name -> what to do.
STAYS: Mapping[str, str] = {
    "torch.ao.quantization.pt2e": _PT2E,
    "torch.ao.quantization.quantizer": _PT2E,
    "torch._export.capture_pre_autograd_graph": _PT2E,
    "torchao.quantization.pt2e": _PT2E,
    "torchao": "octavo.quantize with octavo.weight_only_qconfig or octavo.dynamic_qconfig "
    "quantizes linear layers like quantize_",
    "torch.ao.quantization.quantization_mappings": "octavo.plan says which layers are quantized, "
    "and into what; leave one out with QConfigMapping",
    "torch.ao.quantization.fuser_method_mappings": "octavo.capture folds batch norms, and the "
    "plan fuses activations; nothing has to be registered",
    "torch.ao.quantization.quantize_jit": "octavo.quantize takes the nn.Module that was scripted",
    "torch.ao.ns.fx": "octavo.layer_errors and octavo.sensitivity compare layer by layer",
    "torch.ao.ns._numeric_suite_fx": "octavo.layer_errors and octavo.sensitivity compare layer by "
    "layer",
    "torch.ao.nn.intrinsic": "fused layers are steps of Octavo's plan, not modules: write the "
    "float "
    "layers one after another",
    "torch.ao.nn.intrinsic.qat.freeze_bn_stats": "a prepared model has the method "
    "freeze_bn_stats(), one from octavo.prepare_qat freeze_batch_norms()",
    "torch.ao.nn.quantized": "int8 layers are made by octavo.quantize: write the float layer",
    "torch.ao.nn.quantizable": "octavo.quantize takes nn.LSTM and nn.MultiheadAttention as they "
    "are",
    "torch.ao.nn.qat": "layers that train with rounding are made by octavo.prepare_qat: write the "
    "float layer",
    "torch.ops.quantized_decomposed": _KERNELS,
    "torch.ops.quantized": _KERNELS,
    **{
        f"torch.{name}": "octavo.numerics.affine.quantize and dequantize round by given QParams"
        for name in (
            "quantize_per_tensor",
            "quantize_per_channel",
            "quantize_per_tensor_dynamic",
            "dequantize",
        )
    },
    "torchvision.models.quantization": "these models are written around torch.ao: take the one of "
    "the same name from torchvision.models, which octavo.quantize takes as it is",
    "tinynn.graph.quantization.algorithm.cross_layer_equalization": "per-channel weight scales, "
    "Octavo's default, need no equalization",
    "tinynn.graph.quantization": "only QATQuantizer, PostQuantizer and DynamicQuantizer have a "
    f"counterpart; see {GUIDE}",
    "tinynn.graph.tracer": "Octavo captures a model without tracing its constructors: there is "
    "model_tracer() alone, which does nothing",
    "tinynn.converter": "octavo.export_tflite(q, path) writes a .tflite file",
}


@dataclass(frozen=True)
class Moved:
    """A name that octavo.compat has.

    Attributes:
        new: its full name now.
        is_module: whether it is a module.
        rest: what follows it in the name that was looked up: ``".with_args"``.
    """

    new: str
    is_module: bool = False
    rest: str = ""


@dataclass(frozen=True)
class Stays:
    """A name that octavo.compat does not have, and what to do instead."""

    reason: str


def canonical(full: str) -> str:
    """The name under ``torch.ao``, if it has one."""
    for old, new in _SPELLINGS.items():
        if within(full, old):
            return new + full[len(old) :]
    return full


def within(full: str, prefix: str) -> bool:
    """Whether a dotted name is ``prefix`` or something in it."""
    return full == prefix or full.startswith(f"{prefix}.")


def module_of(full: str) -> str | None:
    """The module of octavo.compat that has taken the place of an old one."""
    return MODULES.get(canonical(full))


def place_of(full: str) -> Moved | Stays | None:
    """Where a name has gone; ``None`` for what is none of ours.

    Example:
        >>> place_of("torch.quantization.QuantStub").new
        'octavo.compat.quantization.QuantStub'
        >>> place_of("torch.nn.Linear") is None
        True
    """
    name = canonical(full)
    for single, new in _SINGLE.items():
        if within(name, single):
            return Moved(new, rest=name[len(single) :])
    found = _in_module(name)
    if found is not None:
        return found
    if name in MODULES:
        return Moved(MODULES[name], is_module=True)
    prefixes = [prefix for prefix in STAYS if within(name, prefix)]
    if prefixes:
        return Stays(STAYS[max(prefixes, key=len)])
    modules = [module for module in MODULES if within(name, module)]
    if modules:
        module = max(modules, key=len)
        return Stays(_why_not(MODULES[module], name[len(module) + 1 :]))
    return None


def _in_module(name: str) -> Moved | None:
    for module in sorted(MODULES, key=len, reverse=True):
        if name != module and within(name, module):
            first, dot, rest = name[len(module) + 1 :].partition(".")
            if first in NAMES[MODULES[module]]:
                return Moved(f"{MODULES[module]}.{first}", rest=dot + rest)
    return None


def _why_not(module: str, name: str) -> str:
    """What octavo.compat itself says of a name that it does not have."""
    error = missing(module, name.partition(".")[0])
    known = isinstance(error, OctavoError)
    return str(error) if known else f"{module} has no such name; see {GUIDE} for the native way"
