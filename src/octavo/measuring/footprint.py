"""What a model takes on disk, and what it costs to load: of every contender of a comparison.

Tested in tests/measuring/test_comparison.py and tests/model/test_summary.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from octavo.errors import CaptureError, OctavoError
from octavo.graph.batches import Batch, Signature, with_floats
from octavo.graph.capture.capture import capture
from octavo.measuring.cold_start import ColdStart, cold_start
from octavo.measuring.comparison_table import BASELINES
from octavo.measuring.contenders import Contender, cast, one_line
from octavo.model import parts_file
from octavo.model.model import QuantizedModel
from octavo.model.parts import parts_of
from octavo.quantization.plan import Plan


def bytes_on_disk(contenders: Sequence[Contender], folder: Path) -> dict[str, int]:
    """Bytes on disk of each model, by label: a quantized one's whole file, the others' weights."""
    sizes: dict[str, int] = {}
    for place, contender in enumerate(contenders):
        if contender.label in sizes:
            continue
        file = folder / f"{place}"
        if isinstance(contender.model, QuantizedModel):
            contender.model.save(file)
        elif parts_of(contender.model):
            parts_file.save(contender.model, file)
        else:
            state = _untied(contender.model.state_dict())
            save_file(state if contender.dtype is None else cast(state, contender.dtype), file)
        sizes[contender.label] = file.stat().st_size
        file.unlink()
    return sizes


def float_bytes(model: nn.Module) -> int:
    """Bytes of a float model's weights; those that are tied count once."""
    return sum(t.numel() * t.element_size() for t in _untied(model.state_dict()).values())


def _untied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state with tied weights once, which is what safetensors takes."""
    tensors: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage().data_ptr() or name
            place = (storage, tensor.storage_offset(), tensor.shape)
            copied = tensor.detach().clone(memory_format=torch.contiguous_format)
            tensors.setdefault(place, (name, copied))
    return dict(tensors.values())


def cold_starts_of(
    contenders: Sequence[Contender], batch: Batch, folder: Path, threads: int
) -> dict[str, ColdStart]:
    """Load time and memory of those that can be a file, by name."""
    starts = {}
    for contender in contenders:
        model = _as_file(contender, batch) if contender.error is None else None
        if model is None:
            continue
        file = folder / "model.octavo"
        model.save(file)
        runtime = model.runtime
        try:
            starts[contender.name] = cold_start(file, runtime, batch=batch.size, threads=threads)
        except OctavoError as error:
            contender.error = one_line(error)
    return starts


def _as_file(contender: Contender, batch: Batch) -> QuantizedModel | None:
    """The model in Octavo's format: fp32 and bf16 as a graph with nothing quantized."""
    if isinstance(contender.model, QuantizedModel):
        return contender.model
    if contender.name not in BASELINES:
        return None
    floats = with_floats(batch, contender.pixels)
    args, kwargs = cast((floats.args, floats.kwargs), contender.dtype or torch.float32)
    try:
        graph = capture(contender.model, args, kwargs, progress=False)
    except CaptureError:
        return None
    nothing = Plan("x86", "static", {})
    return QuantizedModel(graph, nothing, Signature.of(contender.model), {})
