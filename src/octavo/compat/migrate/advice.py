"""What to say about names and arguments that are moved: tables."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.compat.migrate.places import COMPAT, within

_STATIC = (
    "octavo.quantize(model, calibration=loader) does prepare, calibration and convert in one call, "
    "without stubs or fusing"
)
_TRAINED = (
    "octavo.prepare_qat(model, example) and octavo.convert(qat) do the same, with a Schedule, "
    "learned scales and distillation"
)
_QUANTIZERS = (
    "TinyNN's quantizers are octavo.prepare_qat and octavo.quantize: no rewritten file, one call"
)
_FUSED = "Octavo folds batch norms and fuses activations by itself: the call can go"

# Prefix of a full name, after the move -> a better native call.
REMARKS: Mapping[str, str] = {
    f"{COMPAT}.quantization.prepare": _STATIC,
    f"{COMPAT}.quantization.quantize": _STATIC,
    f"{COMPAT}.quantize_fx.prepare_fx": _STATIC,
    f"{COMPAT}.quantization.prepare_qat": _TRAINED,
    f"{COMPAT}.quantization.quantize_qat": _TRAINED,
    f"{COMPAT}.quantize_fx.prepare_qat_fx": _TRAINED,
    f"{COMPAT}.quantization.quantize_dynamic": 'octavo.quantize(model, example, mode="dynamic") '
    "has scales per channel, and per token on demand",
    f"{COMPAT}.quantization.fuse_modules": _FUSED,
    f"{COMPAT}.quantization.fuse_modules_qat": _FUSED,
    f"{COMPAT}.quantize_fx.fuse_fx": _FUSED,
    f"{COMPAT}.numeric_suite": "octavo.layer_errors(model, q, data) tells each layer's own error "
    "from what it inherits",
    f"{COMPAT}.tinynn": _QUANTIZERS,
    "torch.backends.quantized": "Octavo's target is chosen where it quantizes, by "
    "get_default_qconfig(backend) or target=; this setting changes nothing there",
}

# The same, said only of a file that has something to move: elsewhere they are none of our business.
IN_PASSING: Mapping[str, str] = {
    f"torch.jit.{name}": "a model that Octavo quantized is not TorchScript: q.save(path) and "
    "octavo.load, octavo.export_onnx or octavo.export_package ship it"
    for name in ("script", "trace", "freeze", "optimize_for_inference")
}

_BY_TARGET = "pass target= to octavo.quantize instead of a backend's configuration"
_BY_RULES = (
    "keep a layer in float by qconfig = None, or by QConfigMapping().set_module_name(name, None)"
)
_BY_CAPTURE = "octavo.capture finds what can be fused; take the argument out"
_BY_CHANNEL = "weight scales per channel need no equalization; take the argument out"
_BY_GRAPH = "octavo.capture and octavo.convert give the quantized graph itself"

# Module -> argument of its functions -> why it is not taken, and what to do.
ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    f"{COMPAT}.quantization": {
        "mapping": _BY_RULES,
        "allow_list": _BY_RULES,
        "observer_non_leaf_module_list": _BY_RULES,
        "prepare_custom_config_dict": _BY_RULES,
        "convert_custom_config_dict": _BY_RULES,
        "custom_module_class_mapping": _BY_RULES,
        "is_reference": _BY_GRAPH,
        "fuser_func": _BY_CAPTURE,
        "fuse_custom_config_dict": _BY_CAPTURE,
    },
    f"{COMPAT}.quantize_fx": {
        "backend_config": _BY_TARGET,
        "backend_config_dict": _BY_TARGET,
        "prepare_custom_config": _BY_RULES,
        "prepare_custom_config_dict": _BY_RULES,
        "convert_custom_config": _BY_RULES,
        "convert_custom_config_dict": _BY_RULES,
        "_equalization_config": _BY_CHANNEL,
        "equalization_config": _BY_CHANNEL,
        "is_reference": _BY_GRAPH,
        "fuse_custom_config": _BY_CAPTURE,
        "fuse_custom_config_dict": _BY_CAPTURE,
    },
}


def remark_on(full: str, table: Mapping[str, str]) -> str | None:
    """The longest entry's remark on a name."""
    prefixes = [prefix for prefix in table if within(full, prefix)]
    return table[max(prefixes, key=len)] if prefixes else None
