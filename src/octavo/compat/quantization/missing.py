"""What ``torch.ao.quantization`` has and Octavo does not share: the native way to do it."""

from __future__ import annotations

from typing import Any

from octavo.errors import OctavoError, PlanError

_JIT = "octavo.quantize takes the nn.Module that was scripted; q.save(path) writes it"
_MAPPINGS = (
    "octavo.plan(graph) says which layers are quantized, and into what; leave one out with "
    "QConfigMapping().set_module_name(name, None)"
)
_FUSION = (
    "octavo.capture folds batch norms and the plan fuses activations: print(octavo.plan(graph))"
)
_RECORDS = "octavo.layer_errors(model, q, data) keeps what layers return"
_FLOAT16 = "for half precision use model.half() or model.bfloat16()"
_SPARSE = "Octavo has no sparse kernels: octavo.quantize gives dense int8"
_TORCHAO = "a scheme is octavo.Scheme, an observer one of octavo.observers"

_MISSING: dict[str, str] = {
    **dict.fromkeys(
        """convert_jit prepare_jit quantize_jit convert_dynamic_jit prepare_dynamic_jit
        quantize_dynamic_jit fuse_conv_bn_jit script_qconfig script_qconfig_dict""".split(),
        _JIT,
    ),
    **dict.fromkeys(
        """get_default_dynamic_quant_module_mappings get_default_qat_module_mappings
        get_default_float_to_quantized_operator_mappings get_default_static_quant_module_mappings
        get_default_static_quant_reference_module_mappings get_default_qconfig_propagation_list
        get_default_compare_output_module_list get_dynamic_quant_module_class
        get_embedding_qat_module_mappings get_embedding_static_quant_module_mappings
        get_quantized_operator get_static_quant_module_class no_observer_set swap_module
        DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS
        DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS DEFAULT_MODULE_TO_ACT_POST_PROCESS
        DEFAULT_QAT_MODULE_MAPPINGS DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS
        DEFAULT_STATIC_QUANT_MODULE_MAPPINGS DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS
        propagate_qconfig_ add_quant_dequant get_combined_dict get_default_custom_config_dict
        QuantType MatchAllNode Pattern ObserverOrFakeQuantize""".split(),
        _MAPPINGS,
    ),
    **dict.fromkeys(
        """fuse_conv_bn fuse_conv_bn_relu fuse_convtranspose_bn fuse_linear_bn get_fuser_method
        get_fuser_method_new fuse_known_modules""".split(),
        _FUSION,
    ),
    **dict.fromkeys(
        """RecordingObserver default_debug_observer default_debug_qconfig
        get_observer_dict get_observer_state_dict load_observer_state_dict""".split(),
        _RECORDS,
    ),
    **dict.fromkeys("float16_dynamic_qconfig float16_static_qconfig".split(), _FLOAT16),
    **dict.fromkeys(
        """get_default_dynamic_sparse_quant_module_mappings
        get_default_static_sparse_quant_module_mappings""".split(),
        _SPARSE,
    ),
    **dict.fromkeys(
        """AffineQuantizedObserverBase Granularity MappingType PerAxis PerBlock PerGroup PerRow
        PerTensor PerToken TorchAODType ZeroPointDomain get_block_size""".split(),
        _TORCHAO,
    ),
    **dict.fromkeys(
        """default_symmetric_qnnpack_qconfig default_per_channel_symmetric_qnnpack_qconfig
        default_symmetric_qnnpack_qat_qconfig
        default_per_channel_symmetric_qnnpack_qat_qconfig""".split(),
        'octavo.quantize(model, calibration=loader, target="edge") has int8 activations',
    ),
    **dict.fromkeys(
        """Logger OutputLogger ShadowLogger Shadow get_logger_dict prepare_model_outputs
        prepare_model_with_stubs get_matching_activations""".split(),
        "compare_model_outputs and compare_model_stub do their own logging",
    ),
    "convert_to_reference_fx": "convert_fx(model).octavo_model.lower('reference') is the oracle",
    "ReuseInputObserver": "the plan lets an operator share the scale of its input by itself",
    "default_reuse_input_observer": "the plan lets an operator share a scale by itself",
    "default_reuse_input_qconfig": "the plan lets an operator share a scale by itself",
    "default_eval_fn": "octavo.compare(model, q, data) measures accuracy",
    "default_activation_only_qconfig": "octavo.quantize rounds weights wherever it rounds inputs",
    "default_quint8_weight_qconfig": "int8 kernels take signed weights: default_qconfig",
    "backend_config": "targets are data, see octavo.quantization.targets: octavo.quantize(target=)",
    "quantize_pt2e": "octavo.quantize(model, calibration=loader) captures with torch.export itself",
    "fx": "Octavo's graph is octavo.capture(model, inputs)",
}


def missing(module: str, name: str) -> Exception:
    """The error for a name that a module of compat does not have."""
    if name.startswith("__"):  # what import machinery and tools look for
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    if name in _MISSING:
        return OctavoError(f"octavo.compat has no {name}: {_MISSING[name]}. See docs/compat.md")
    return AttributeError(f"module {module!r} has no attribute {name!r}: see docs/compat.md")


_RULES = (
    "the model's qconfig says what is quantized, or an octavo.QConfigMapping for octavo.quantize"
)


def refuse(way_out: str = _RULES, **given: Any) -> None:
    """Raise for an argument that Octavo gives no meaning.

    Args:
        way_out: what to do instead, as a clause.
        given: the arguments, by their names; ``None`` is none.

    Raises:
        PlanError: one is given.
    """
    for name, value in given.items():
        if value is not None:
            raise PlanError(f"octavo.compat does not take the argument {name}: {way_out}")
