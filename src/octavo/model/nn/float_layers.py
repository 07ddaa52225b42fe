"""Float layers, as those see them who quantize them: their tensors, and what stands in the way.

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from octavo.quantization.qconfig import QConfig

# transformers' linear layer of GPT-2 and its kin, whose weight is ``[in, out]``.
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")

Module = TypeVar("Module", bound=nn.Module)


def taking_place(module: Module, layer: nn.Module) -> Module:
    """A quantized module with the hooks of the float layer, and in its mode."""
    for table in _HOOKS:
        for kind in (table, f"{table}_with_kwargs"):
            setattr(module, kind, getattr(layer, kind).copy())
    return module.train(layer.training)


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is ``[in, out]``."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == _TRANSPOSED


def scale_of_rows(layer: nn.Module) -> float | None:
    """By what a table multiplies its rows, where that is all that it does to them.

    Many models of transformers have such a table, each a class of its own; that it is one is found
    by calling it.
    """
    scale = getattr(layer, "embed_scale", None)
    if not isinstance(layer, nn.Embedding) or not isinstance(scale, Tensor | float | int):
        return None
    with torch.no_grad():
        indices = torch.arange(min(4, layer.num_embeddings), device=layer.weight.device)
        factor = torch.as_tensor(scale, device=layer.weight.device).to(layer.weight.dtype)
        try:
            rows = layer(indices)
        except (RuntimeError, TypeError, ValueError, IndexError):  # it takes something else
            return None
        same = F.embedding(indices, layer.weight) * factor
    known = isinstance(rows, Tensor) and not rows.is_meta and factor.dim() == 0
    return float(factor) if known and torch.equal(rows, same) else None


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of a weight ``[out, in]`` and a bias ``[out]`` that something else holds."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def tensors_of(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters of a layer; the weight of a linear layer ``[out, in]``, however it has it."""
    tensors: dict[str, Tensor] = dict(layer.named_parameters())
    return tensors | {"weight": tensors["weight"].t()} if is_transposed(layer) else tensors


def is_computed(layer: nn.Module) -> bool:
    """Whether a weight of the layer is computed from others: pruned, or normalized."""
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    # What torch's older ways of computing a weight add to its name.
    normed = any(f"{name.removesuffix('_g')}_v" in names for name in names if name.endswith("_g"))
    return is_parametrized(layer) or normed or any(name.endswith("_orig") for name in names)


def _is_patched(layer: nn.Module) -> bool:
    """Whether somebody put another forward in front of the class's; accelerate's, which moves
    tensors between devices, computes the same.
    """
    return "forward" in vars(layer) and "_hf_hook" not in vars(layer)


def obstacle_of(layer: nn.Module, qconfig: QConfig) -> str | None:
    """Why a layer's weights cannot become integers, as a clause; ``None`` where they can."""
    if qconfig.mode == "static":
        return (
            "its QConfig is static, which needs data and a graph: give octavo.dynamic_qconfig() or "
            "octavo.weight_only_qconfig(), or calibration data for the whole model"
        )
    if any(map(is_computed, layer.modules())):
        return (
            "its weight is computed: make it a parameter first, with "
            "torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
            "remove_spectral_norm or prune.remove"
        )
    if any(map(_is_patched, layer.modules())):
        return (
            "its forward was replaced in the instance, and what that does would be lost: make a "
            "module of it that holds the layer"
        )
    if getattr(layer, "max_norm", None) is not None:
        return "it has a max_norm, by which it changes its table at each call"
    weights = {name: t for name, t in tensors_of(layer).items() if t.dim() > 1}
    if not weights:
        return "it has no weight"
    for name, weight in weights.items():
        if not weight.dtype.is_floating_point:
            return f"its {name} is {weight.dtype}, not float"
        if weight.is_meta:
            return f"its {name} has no values, it is on meta"
        if not bool(torch.isfinite(weight.sum(dtype=torch.float64))):
            return f"its {name} has a NaN or an infinity in it"
        misfit = qconfig.weight.scheme.misfit(name, weight.shape)
        if misfit is not None:
            return misfit
    return None
