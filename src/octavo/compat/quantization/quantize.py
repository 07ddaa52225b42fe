"""Eager mode: ``prepare``, ``prepare_qat``, ``convert`` and ``quantize_dynamic``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from octavo.compat.quantization.dynamic import DYNAMIC, TABLES, float_kind, swap_layers
from octavo.compat.quantization.missing import refuse
from octavo.compat.quantization.preparation import Preparation, Prepared
from octavo.compat.quantization.qconfig import (
    common_target,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    native,
)
from octavo.compat.quantization.rules import EagerRules, Rules
from octavo.compat.quantization.takeover import Changed, as_float, become, float_copy, submodules
from octavo.compat.quantization.torch_types import name_of
from octavo.compat.quantization.training import Trained, Training
from octavo.errors import PlanError
from octavo.graph.copying import copied
from octavo.quantization.qconfig import QConfig
from octavo.quantization.targets import dynamic_qconfig


def prepare(
    model: nn.Module,
    inplace: bool = False,
    allow_list: Any = None,
    observer_non_leaf_module_list: Any = None,
    prepare_custom_config_dict: Any = None,
) -> nn.Module:
    """Prepare a model for calibration: call it on data, then `convert` it.

    Args:
        model: with a ``qconfig``, and stubs where integers begin and end.
        inplace: prepare ``model`` itself.
        allow_list, observer_non_leaf_module_list, prepare_custom_config_dict: not shared.

    Returns:
        The model, which runs in float and is captured at its first call.

    Raises:
        PlanError: no module has a qconfig, or there are no stubs.

    Example:
        >>> import torch
        >>> from octavo.compat.quantization import QuantWrapper, get_default_qconfig
        >>> net = QuantWrapper(nn.Linear(4, 2)).eval()
        >>> net.qconfig = get_default_qconfig("x86")
        >>> prepared = prepare(net)
        >>> prepared(torch.rand(8, 4)).shape
        torch.Size([8, 2])
        >>> convert(prepared)(torch.rand(1, 4)).shape
        torch.Size([1, 2])
    """
    refuse(
        allow_list=allow_list,
        observer_non_leaf_module_list=observer_non_leaf_module_list,
        prepare_custom_config_dict=prepare_custom_config_dict,
    )
    refuse_prepared(model)
    rules = EagerRules.of(model, training=False)
    return prepared(model if inplace else copied(model), rules)


def prepare_qat(model: nn.Module, mapping: Any = None, inplace: bool = False) -> nn.Module:
    """Prepare a model for training: train it in any loop, then `convert` it.

    Args:
        model: with a ``qconfig``, and stubs where integers begin and end.
        mapping: not shared.
        inplace: prepare ``model`` itself.

    Returns:
        The model; its parameters are its own, so that an optimizer may be made before its first
        call or after.

    Raises:
        PlanError: no module has a qconfig, or there are no stubs.
    """
    refuse(mapping=mapping)
    refuse_prepared(model)
    rules = EagerRules.of(model, training=True)
    return trained(model if inplace else copied(model), rules)


def convert(
    module: nn.Module,
    mapping: Any = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    is_reference: bool = False,
    convert_custom_config_dict: Any = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """Convert a prepared model to int8.

    Args:
        module: from `prepare` or `prepare_qat`.
        inplace: convert ``module`` itself.
        remove_qconfig: not looked at; the plan is what qconfigs become.
        mapping, is_reference, convert_custom_config_dict, use_precomputed_fake_quant: not shared.

    Returns:
        The model, whose forward runs in int8. Its ``octavo_model`` is the model as Octavo has it.
        Without calibration it waits for the state dict of another converted model.

    Raises:
        PlanError: the model was not prepared.
    """
    refuse(
        mapping=mapping,
        is_reference=is_reference or None,
        convert_custom_config_dict=convert_custom_config_dict,
        use_precomputed_fake_quant=use_precomputed_fake_quant or None,
    )
    modules = [*submodules(module, Prepared), *submodules(module, Trained)]
    if not modules:
        raise PlanError(
            f"{type(module).__name__} was not prepared: call prepare or prepare_qat, run it on "
            "data, and convert what they return (or the model itself with inplace=True)"
        )
    if isinstance(module, Prepared | Trained):
        state = module._octavo
        state.rules.refuse_changes(module)
        return state.convert(module if inplace else float_copy(module))
    root = module if inplace else copied(module)
    for path, _ in modules:
        convert(root.get_submodule(path), inplace=True)
    return root


def prepared(model: nn.Module, rules: Rules) -> nn.Module:
    """Make a model a prepared one, in place."""
    return become(model, Prepared, Preparation.of(model, rules))


def trained(model: nn.Module, rules: Rules) -> nn.Module:
    """Make a model one prepared for training, in place."""
    return become(model, Trained, Training.of(model, rules))


def copy_prepared(
    model: nn.Module, rules: Rules, training: bool, example_inputs: Any = None
) -> Any:
    """A copy of a model, prepared for calibration or for training.

    Args:
        model: the float model.
        rules: what is quantized.
        training: which of both.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments to
            capture it with; without any it is captured at its first call.
    """
    prepare = trained if training else prepared
    copy: Any = prepare(copied(model).train(training), rules)
    if isinstance(example_inputs, Mapping):
        copy._octavo.capture(as_float(copy), (), example_inputs)
    elif example_inputs is not None:
        many = isinstance(example_inputs, tuple | list)
        args = tuple(example_inputs) if many else (example_inputs,)
        copy._octavo.capture(as_float(copy), args, {})
    return copy


def quantize(
    model: nn.Module,
    run_fn: Callable[..., Any],
    run_args: Any,
    mapping: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """`prepare`, ``run_fn(model, *run_args)``, `convert`."""
    refuse(mapping=mapping)
    model = prepare(model.eval(), inplace)
    run_fn(model, *run_args)
    return convert(model, inplace=True)


def quantize_qat(
    model: nn.Module, run_fn: Callable[..., Any], run_args: Any, inplace: bool = False
) -> nn.Module:
    """`prepare_qat`, ``run_fn(model, *run_args)``, `convert`."""
    model = prepare_qat(model.train(), inplace=inplace)
    run_fn(model, *run_args)
    return convert(model, inplace=True)


# dtype -> its default qconfig (None: the target's), and the layers that have it where nobody names
# any.
_DEFAULTS: Mapping[str, tuple[Any, tuple[type[nn.Module], ...]]] = {
    "qint8": (None, DYNAMIC),
    "quint8": (float_qparams_weight_only_qconfig, TABLES),
    "quint4x2": (float_qparams_weight_only_qconfig_4bit, TABLES),
}


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Any = None,
    dtype: Any = "qint8",
    mapping: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """Quantize the weights of layers now, and what they read at each call.

    Args:
        model: any module; it goes on running as it is written.
        qconfig_spec: a set of module classes or paths; or a dict from these to qconfigs. All
            linear and recurrent layers without.
        dtype: ``torch.qint8``, or ``torch.quint8`` for tables. Weights of layers that no qconfig
            is given for have a scale for each channel.
        mapping: not shared.
        inplace: change ``model`` itself.

    Raises:
        PlanError: Octavo does not share the meaning of an argument.

    Example:
        >>> net = quantize_dynamic(nn.Sequential(nn.Linear(4, 2)), {nn.Linear})
        >>> net[0]
        DynamicQuantizedLinear(in_features=4, out_features=2, bias=True)
    """
    refuse(mapping=mapping)
    refuse_prepared(model)
    if name_of(dtype) not in _DEFAULTS:
        raise PlanError(
            f"dtype is {dtype}: take torch.qint8; for half precision use model.half() or "
            "model.bfloat16()"
        )
    default, kinds = _DEFAULTS[name_of(dtype)]
    target = common_target(qconfig_spec.values() if isinstance(qconfig_spec, Mapping) else ())
    _refuse_unknown(model, qconfig_spec or ())
    rules: dict[Any, QConfig | None]
    if isinstance(qconfig_spec, Mapping):
        rules = {kind: native(qconfig, target) for kind, qconfig in qconfig_spec.items()}
    else:
        usual = dynamic_qconfig(target) if default is None else native(default, target)
        rules = dict.fromkeys(kinds if qconfig_spec is None else qconfig_spec, usual)
    _refuse_modes(model, rules)

    def rule_of(path: str, module: nn.Module) -> Any:
        """The key of the spec that says of a module, or of one around it, how it is quantized."""
        kind = next((kind for kind in (type(module), float_kind(module)) if kind in rules), None)
        while path and path not in rules and kind is None:
            path = path.rpartition(".")[0]
        return path if path in rules else kind

    root = model if inplace else copied(model)
    return swap_layers(
        root,
        lambda path, module: rules.get(rule_of(path, module)),
        target,
        lambda path, module: rule_of(path, module) is not None,
    )


def _refuse_unknown(model: nn.Module, qconfig_spec: Iterable[Any]) -> None:
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    for key in qconfig_spec:
        if isinstance(key, str) and key not in paths:
            raise PlanError(
                f"qconfig_spec names {key!r}, which is not a module of the model: {paths}"
            )


def _refuse_modes(model: nn.Module, rules: Mapping[Any, QConfig | None]) -> None:
    """Raise for a qconfig that cannot be followed.

    Raises:
        PlanError: it is static; or dynamic, and for a table.
    """
    for key, qconfig in rules.items():
        kind = float_kind(model.get_submodule(key)) if isinstance(key, str) else key
        if qconfig is not None and qconfig.mode == "static":
            raise PlanError(
                f"the qconfig of {key} is static, and there is no data: take "
                "default_dynamic_qconfig, or prepare and convert"
            )
        if qconfig is not None and qconfig.mode == "dynamic" and kind in TABLES:
            raise PlanError(
                f"the qconfig of {key} is dynamic, and a table reads indices: take "
                "float_qparams_weight_only_qconfig for it, or leave it out"
            )


def refuse_prepared(model: nn.Module) -> None:
    """Raise for a model that is prepared or converted."""
    if isinstance(model, Changed):
        raise PlanError("the model is prepared already: call convert, or prepare the float model")
