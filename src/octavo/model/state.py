"""A quantized model's state dict: its tensors, and one more that holds all they do not say.

Scales and zero points of activations, the plan and the graph are not tensors. They stand in the
state dict as the bytes of a JSON text, ``_extra_state``: so ``torch.load(weights_only=True)`` and
safetensors take it. Whoever loads it becomes the model that was saved, or refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ArtifactError, OctavoError
from octavo.graph.graph import TensorMeta
from octavo.model import artifact
from octavo.model.artifact import Artifact

KEY = "_extra_state"  # torch's own name for it
_WAY_OUT = (
    "quantize this model as that one was, or use q.save(path) and octavo.load(path), which need "
    "no model to load into"
)


def extra_state(content: Artifact) -> Tensor:
    """All but the tensors, as uint8 ``[N]``."""
    text = json.dumps(artifact.metadata_of(content))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def restored(state: Mapping[str, Any], prefix: str, own: Mapping[str, Tensor]) -> Artifact:
    """What a state dict holds, to be put into a model with tensors such as these.

    Args:
        state: of a quantized model, or of a module that it is a part of.
        prefix: of its keys there: ``"backbone."``.
        own: the tensors of the model that loads it.

    Raises:
        ArtifactError: it is not the whole state of a quantized model, or one of another form.
    """
    try:
        extra = state.get(prefix + KEY)
        if extra is None:
            raise ArtifactError(
                f"it has no {prefix + KEY!r}, which holds the scales and zero points: it is of a "
                f"float model, of an older Octavo, or only a part; {_WAY_OUT}"
            )
        for name, tensor in own.items():
            _check_tensor(prefix + name, state.get(prefix + name), tensor)
        return artifact.from_metadata(_read(extra), own)
    except OctavoError as error:
        raise ArtifactError(f"the state dict cannot be loaded: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ArtifactError(f"the state dict is malformed: {error}") from None


def _check_tensor(name: str, loaded: Any, own: Tensor) -> None:
    if not isinstance(loaded, Tensor):
        raise ArtifactError(
            f"it has no {name!r}: a quantized model is loaded whole or not at all; {_WAY_OUT}"
        )
    there, here = TensorMeta.of(loaded), TensorMeta.of(own)
    if there != here:
        raise ArtifactError(f"{name!r} is {there} there and {here} here; {_WAY_OUT}")


def _read(extra: Any) -> dict[str, str]:
    if not isinstance(extra, Tensor) or extra.dtype != torch.uint8 or extra.dim() != 1:
        raise ArtifactError(f"its {KEY!r} is not what Octavo writes")
    metadata = json.loads(extra.cpu().numpy().tobytes())
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise ArtifactError(f"its {KEY!r} is not what Octavo writes")
    return metadata
