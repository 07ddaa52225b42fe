"""``fuse_modules``: layers that belong together as one module.

Octavo fuses whatever its kernels can, named here or not; these functions give the modules the
places and names that old code expects. Each is a ``Sequential`` of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from octavo.compat.quantization.holding import put
from octavo.compat.quantization.missing import refuse
from octavo.errors import PlanError
from octavo.graph.copying import copied


class FusedModule(nn.Sequential):
    """Modules that run as one."""


def _fused(name: str) -> type[FusedModule]:
    return type(name, (FusedModule,), {"__doc__": f"{name}.", "__module__": __name__})


# The kinds in a row -> the fused module.
_PATTERNS: dict[tuple[str, ...], type[FusedModule]] = {
    ("Linear", "ReLU"): _fused("LinearReLU"),
    ("Linear", "BN1d"): _fused("LinearBn1d"),
    ("BN2d", "ReLU"): _fused("BNReLU2d"),
    ("BN3d", "ReLU"): _fused("BNReLU3d"),
}
for _d in ("1d", "2d", "3d"):
    _PATTERNS |= {
        (f"Conv{_d}", "ReLU"): _fused(f"ConvReLU{_d}"),
        (f"Conv{_d}", f"BN{_d}"): _fused(f"ConvBn{_d}"),
        (f"Conv{_d}", f"BN{_d}", "ReLU"): _fused(f"ConvBnReLU{_d}"),
        (f"ConvTranspose{_d}", f"BN{_d}"): _fused(f"ConvTransposeBn{_d}"),
    }


_FUSES = "Octavo fuses by its graph: leave it out"


def fuse_modules(
    model: nn.Module,
    modules_to_fuse: Sequence[Any],
    inplace: bool = False,
    fuser_func: Any = None,
    fuse_custom_config_dict: Any = None,
) -> nn.Module:
    """Fuse modules of a model in evaluation mode; batch norms go into the layers before them.

    Args:
        model: the model.
        modules_to_fuse: paths of modules in a row, or a list of such lists.
        inplace: change ``model`` itself.
        fuser_func, fuse_custom_config_dict: not shared.

    Returns:
        The model: the first module of each row is the fused one, the others do nothing.

    Raises:
        PlanError: a path does not exist, the kinds do not fuse, or the model is training.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
        >>> type(fuse_modules(net, ["0", "1"])[0]).__name__
        'ConvReLU2d'
    """
    refuse(_FUSES, fuser_func=fuser_func, fuse_custom_config_dict=fuse_custom_config_dict)
    return _fuse(model, modules_to_fuse, inplace, training=False)


def fuse_modules_qat(
    model: nn.Module,
    modules_to_fuse: Sequence[Any],
    inplace: bool = False,
    fuser_func: Any = None,
    fuse_custom_config_dict: Any = None,
) -> nn.Module:
    """`fuse_modules` for training: batch norms stay, and are trained."""
    refuse(_FUSES, fuser_func=fuser_func, fuse_custom_config_dict=fuse_custom_config_dict)
    return _fuse(model, modules_to_fuse, inplace, training=True)


def _fuse(model: nn.Module, rows: Sequence[Any], inplace: bool, training: bool) -> nn.Module:
    model = model if inplace else copied(model)
    for row in [rows] if rows and isinstance(rows[0], str) else rows:
        parts = [_part(model, path) for path in row]
        fused = _fused_of(row, parts, training)
        for path, part in zip(row, [fused, *(nn.Identity() for _ in row[1:])], strict=True):
            put(model, path, part.train(parts[0].training))
    return model


def _taken_hooks(parts: list[nn.Module]) -> dict[str, Any]:
    """The hooks in front of the first part and behind the last, which are now the whole's."""
    taken = {}
    for name, part in (("_forward_pre_hooks", parts[0]), ("_forward_hooks", parts[-1])):
        for table in (name, f"{name}_with_kwargs"):
            taken[table] = getattr(part, table).copy()
            getattr(part, table).clear()
    return taken


def _part(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        paths = [name for name, _ in model.named_modules() if name][:8]
        raise PlanError(f"the model has no module {path!r} to fuse; it has {paths}") from None


def _fused_of(row: Sequence[str], parts: list[nn.Module], training: bool) -> nn.Module:
    kinds = tuple(type(part).__name__.replace("BatchNorm", "BN") for part in parts)
    if kinds not in _PATTERNS:
        raise PlanError(
            f"{list(row)} are {' + '.join(kinds)}, which fuse_modules does not know: leave them "
            "out, Octavo finds in its graph what its kernels can fuse"
        )
    norms = [part for part, kind in zip(parts, kinds, strict=True) if kind.startswith("BN")]
    folds = not training and bool(norms) and norms[0] is not parts[0]
    if folds and any(part.training for part in parts):
        raise PlanError(
            f"{list(row)} are in training mode: call model.eval() before fuse_modules, or take "
            "fuse_modules_qat to train"
        )
    hooks = _taken_hooks(parts)
    if folds:
        parts = [_folded(parts[0], norms[0], kinds[0]), *parts[2:]]
        kinds = (kinds[0], *kinds[2:])
    fused = _PATTERNS[kinds](*parts) if len(parts) > 1 else parts[0]
    fused.__dict__.update(hooks)
    return fused


def _folded(layer: Any, norm: Any, kind: str) -> nn.Module:
    folded: nn.Module
    if kind == "Linear":
        folded = fuse_linear_bn_eval(layer, norm)
    else:
        folded = fuse_conv_bn_eval(layer, norm, transpose=kind.startswith("ConvTranspose"))
    return folded
