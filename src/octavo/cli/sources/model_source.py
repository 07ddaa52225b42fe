"""MODEL on a command line: ``package.module:name`` with weights, or a ``.pt2`` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.cli.sources.pt2 import load_pt2
from octavo.cli.sources.references import call_reference, is_reference, resolve_reference
from octavo.errors import InputError
from octavo.model.files import tensor_file
from octavo.model.files.source_file import check_file, reason

# Where training scripts keep the state dict in their checkpoints.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")


def load_model(source: str, weights: str | Path | None = None) -> nn.Module:
    """The model of a MODEL argument, in evaluation mode.

    Args:
        source: ``package.module:name`` of a module, or of a function or class that returns one
            when it is called without arguments; or a ``.pt2`` file of ``torch.export.save``.
        weights: a state dict to load into it: ``.safetensors``, or a file of ``torch.save``, which
            is read without running code from it (``weights_only``).

    Raises:
        InputError: it cannot be found, read or built, or the weights do not fit.
    """
    if source.endswith(".pt2"):
        if weights is not None:
            raise InputError(f"{source} holds its weights already: leave --weights {weights} out")
        return load_pt2(source)
    if source and Path(source).exists() and not is_reference(source):
        raise InputError(
            f"{source!r} is neither a file of a known kind nor of the form package.module:name: "
            "give a .pt2 file of torch.export.save, or a function that builds the model, and its "
            "weights by --weights"
        )
    found = resolve_reference(source)
    is_module = isinstance(found, nn.Module)
    if not is_module and not callable(found):
        raise InputError(f"{source} is a {type(found).__name__}, not a model or a function")
    model = found if is_module else call_reference(source, found)
    if not isinstance(model, nn.Module):
        raise InputError(f"{source}() returns a {type(model).__name__}, not an nn.Module")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.eval()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file or a checkpoint of ``torch.save``.

    Raises:
        InputError: the file cannot be read, holds code, or no state dict.
    """
    try:
        check_file(path)
        if path.suffix == ".safetensors":
            return tensor_file.read(path)[1]
    except Exception as error:
        raise InputError(f"cannot read the weights in {path}: {reason(error)}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged; nothing in it was run. Save the "
            "weights alone: torch.save(model.state_dict(), path), or as safetensors"
        ) from error
    return _state_in(path, content)


def _state_in(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    strange = [name for name in content if not isinstance(name, str)]
    if strange:
        raise InputError(
            f"{path} is not a state dict: it holds {strange[0]!r:.80} as a name, which is not text"
        )
    # nn.DataParallel writes its own name before all others.
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _load_weights(model: nn.Module, path: Path) -> None:
    state = read_state_dict(path)
    wanted = model.state_dict()
    both = [name for name in wanted if name in state]
    odd = [name for name in both if type(state[name]) is not type(wanted[name])]
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unknown": sorted(state.keys() - wanted.keys()),
        "no tensors": [f"{name} is a {type(state[name]).__name__}" for name in odd],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in both
            if isinstance(wanted[name], Tensor)
            and name not in odd
            and state[name].shape != wanted[name].shape
        ],
    }
    found = [f"{len(n)} {kind} ({', '.join(n[:3])})" for kind, n in problems.items() if n]
    if found:
        raise InputError(f"{path} does not fit {type(model).__name__}: {'; '.join(found)}")
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{path} does not fit {type(model).__name__}: {reason(error)}") from error
