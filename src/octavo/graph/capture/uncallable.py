"""Why a model cannot be called with what it was given, and what to give instead.

Tested in tests/test_first_mistakes.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.errors import CaptureError, first_line
from octavo.graph.capture.example import signature_of
from octavo.graph.capture.parameter_data import ParametersStay
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.quiet import quiet
from octavo.graph.records import own_caches, with_objects

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def refuse_uncallable(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], stopped: str = ""
) -> None:
    """Call the model, and say what to give instead where it raises.

    Args:
        model, args, kwargs: the call.
        stopped: what export said of where and why it stopped; what the call raises without.

    Raises:
        CaptureError: it cannot be called so.
    """
    given = pytree.tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
    args, kwargs = own_caches(given)
    try:
        with quiet(), left_as_it_was(model), torch.no_grad(), ParametersStay():
            model(*with_objects(args), **with_objects(kwargs))
    except Exception as error:
        raise CaptureError(told(model, args, kwargs, error, stopped), "call") from error


def told(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
    stopped: str = "",
) -> str:
    """What a model raised when it was called, and what to give instead.

    Example:
        >>> print(told(nn.Linear(4, 2), (torch.ones(1, 4).int(),), {}, ValueError("no")))
        Linear cannot be called with int32[1, 4]: ValueError: no. It computes in float32: ...
    """
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    kinds = ", ".join(f"{str(t.dtype)[6:]}{list(t.shape)}" for t in tensors)
    ways = itertools.chain(_asked_for(model, args, kwargs, error), _ways_out(model, tensors, error))
    way_out = next(ways, _CALL_IT_FIRST)
    what = stopped or f"{type(error).__name__}: {first_line(error)}"
    call = f"{type(model).__name__} cannot be called with {kinds or 'that'}"
    return f"{call}: {what.rstrip('.:')}. {way_out}"


_CALL_IT_FIRST = (
    "Check that it runs: give what model(...) takes; inputs=lambda batch: ... chooses that from a "
    "batch"
)


def _asked_for(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> Iterator[str]:
    """Arguments that the model, or a part of it, asks for by their names."""
    names = list(signature_of(model).parameters)
    given = {*names[: len(args)], *(name for name, value in kwargs.items() if value is not None)}
    asked = set(re.findall(r"\w+", str(error))) if isinstance(error, ValueError) else set()
    # A part that lacks what the model was given wants another argument of that kind.
    kinds = {f"_{word}" for word in asked if "_" in word} if asked & given else set()
    missing = [
        name
        for name in names
        if name not in given and (any(map(name.endswith, kinds)) if kinds else name in asked)
    ]
    if not missing:
        return
    needs = f"It needs {' or '.join(missing)} too"
    chosen = ", ".join(f"{name!r}: batch[{name!r}]" for name in sorted(given))
    if "decoder_input_ids" in missing and hasattr(model, _FROM_LABELS):
        decoded = f"'decoder_input_ids': model.{_FROM_LABELS}(batch['labels'])"
        yield (
            f"{needs}, which it makes of labels where it gets them, and a batch's labels are not "
            f"given to it: inputs=lambda batch: {{{chosen}, {decoded}}}"
        )
    yield f"{needs}: have it in each batch, or inputs=lambda batch: {{{chosen}, ...}}"


# Of transformers' models that read one text and write another.
_FROM_LABELS = "prepare_decoder_input_ids_from_labels"


def _ways_out(model: nn.Module, tensors: list[Tensor], error: Exception) -> Iterator[str]:
    """What is likely meant, the likeliest first."""
    inner = [name for name, _ in model.named_children()]
    if isinstance(error, NotImplementedError) and "forward" in str(error) and inner:
        yield f"It has no forward: give the network inside of it, model.{inner[0]}"
    computed = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if computed not in (None, torch.float32) and any(t.is_floating_point() for t in tensors):
        yield f"It computes in {str(computed)[6:]}: give model.float(), and float32 data"
    channels = next((m.in_channels for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None)
    image = next((t for t in tensors if t.dim() in (3, 4)), None)
    if channels is not None and image is not None:
        yield from _ways_out_of_image(image, channels, image.dim() == 4)
    reads_indices = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    for tensor in tensors:
        if tensor.dtype != computed and (tensor.is_floating_point() or not reads_indices):
            yield f"It computes in {str(computed)[6:]}: give x.float()"


def _ways_out_of_image(image: Tensor, channels: int, batched: bool) -> Iterator[str]:
    if image.dtype == torch.uint8 and batched and image.shape[1] == channels:
        yield (
            "These are pixels: give floats as in training, or let the quantized model take pixels, "
            "octavo.quantize(..., input_scale=1 / 255, input_mean=..., input_std=...)"
        )
    if batched and image.shape[-1] == channels != image.shape[1]:
        yield "Its channels come last: give x.permute(0, 3, 1, 2)"
    if not batched and image.shape[0] == channels:
        yield "It is one image, and no batch: give x[None]"
