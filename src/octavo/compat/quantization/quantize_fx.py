"""FX mode: ``prepare_fx``, ``prepare_qat_fx``, ``convert_fx`` and ``fuse_fx``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from octavo.compat.quantization.missing import refuse
from octavo.compat.quantization.qconfig_mapping import mapping_of
from octavo.compat.quantization.quantize import convert, copy_prepared, refuse_prepared
from octavo.compat.quantization.rules import MappingRules
from octavo.errors import PlanError
from octavo.graph.copying import copied


def prepare_fx(
    model: nn.Module,
    qconfig_mapping: Any,
    example_inputs: Any = None,
    prepare_custom_config: Any = None,
    _equalization_config: Any = None,
    backend_config: Any = None,
    *,
    qconfig_dict: Any = None,
) -> nn.Module:
    """Prepare a model for calibration: call it on data, then `convert_fx` it.

    Args:
        model: any module that ``torch.export`` takes; it is left as it was.
        qconfig_mapping: a `QConfigMapping` or a ``qconfig_dict``.
        example_inputs: a tensor or a tuple of arguments; without it the model is captured at its
            first call.
        prepare_custom_config, _equalization_config, backend_config: not shared.

    Returns:
        A copy of the model, which runs in float.

    Raises:
        PlanError: a rule does not fit the model.
        CaptureError: the model cannot be exported.

    Example:
        >>> from octavo.compat.quantization import get_default_qconfig
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> ready = prepare_fx(net, {"": get_default_qconfig("x86")}, torch.rand(1, 4))
        >>> ready(torch.rand(8, 4)).shape
        torch.Size([8, 2])
        >>> convert_fx(ready)[0]
        QuantizedLinear(in_features=4, out_features=2, bias=True)
    """
    refuse(
        prepare_custom_config=prepare_custom_config,
        _equalization_config=_equalization_config,
        backend_config=backend_config,
    )
    return _ready(model, qconfig_mapping, example_inputs, training=False)


def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: Any,
    example_inputs: Any = None,
    prepare_custom_config: Any = None,
    backend_config: Any = None,
) -> nn.Module:
    """Prepare a model for training: train it in any loop, then `convert_fx` it.

    Arguments and errors are those of `prepare_fx`.

    Returns:
        A copy of the model, in training mode. Make the optimizer of *its* parameters.
    """
    refuse(prepare_custom_config=prepare_custom_config, backend_config=backend_config)
    return _ready(model, qconfig_mapping, example_inputs, training=True)


def convert_fx(
    graph_module: nn.Module,
    convert_custom_config: Any = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: Any = None,
    backend_config: Any = None,
) -> nn.Module:
    """Convert a prepared model to int8; the prepared one is left as it was.

    Args:
        graph_module: from `prepare_fx` or `prepare_qat_fx`.
        convert_custom_config, qconfig_mapping, backend_config: not shared.

    Raises:
        PlanError: the model was not prepared.
    """
    refuse(
        convert_custom_config=convert_custom_config,
        qconfig_mapping=qconfig_mapping,
        backend_config=backend_config,
    )
    return convert(graph_module)


def fuse_fx(
    model: nn.Module, fuse_custom_config: Any = None, backend_config: Any = None
) -> nn.Module:
    """A copy of the model with batch norms folded into the layers before them.

    Octavo fuses by its graph when it quantizes: this is for those who want the float model.

    Args:
        model: in evaluation mode.
        fuse_custom_config, backend_config: not shared.

    Raises:
        PlanError: the model is training.
    """
    refuse(fuse_custom_config=fuse_custom_config, backend_config=backend_config)
    if model.training:
        raise PlanError("fuse_fx folds batch norms: call model.eval() first")
    traced = torch.fx.symbolic_trace(copied(model))
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or len(before.users) > 1:
            continue
        layer, norm = (modules.get(str(n.target)) for n in (before, node))
        fuse = _FOLDED.get((type(layer), type(norm)))
        if fuse is None:
            continue
        owner, _, leaf = str(before.target).rpartition(".")
        setattr(modules[owner], leaf, fuse(layer, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


_FOLDED: dict[tuple[Any, Any], Any] = {
    (nn.Conv1d, nn.BatchNorm1d): fuse_conv_bn_eval,
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Conv3d, nn.BatchNorm3d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def _ready(
    model: nn.Module, qconfig_mapping: Any, example_inputs: Any, training: bool
) -> nn.Module:
    refuse_prepared(model)
    rules = MappingRules.of(mapping_of(qconfig_mapping), training)
    ready: nn.Module = copy_prepared(model, rules, training, example_inputs)
    return ready
