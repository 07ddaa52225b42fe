"""`compare`: what int8 costs and what it buys, against fp32 and bf16, in one process.

bf16 stands in the table because it is the honest baseline: it needs no calibration, and int8 that
loses to it is no gain.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.batches import Batch, Signature, split_batch, with_floats
from octavo.chance import PairedCounts, mcnemar, wilson
from octavo.comparison import Comparison, Row
from octavo.errors import InputError
from octavo.evaluation import evaluating
from octavo.latency import REST_S, Latency, interleave, thread_count
from octavo.machine import describe_machine
from octavo.metrics import Likeness, Metric, TaskMetric, float_tensors, metric_factory
from octavo.model import QuantizedModel
from octavo.pixels import Pixels
from octavo.progress import track
from octavo.runtimes import FOREIGN


def compare(
    model: nn.Module,
    q: QuantizedModel,
    data: Iterable[Any],
    *,
    metric: str | Metric | None = None,
    inputs: Callable[[Any], Any] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Put the float model, its bf16 copy and the quantized model side by side.

    Quality is measured on all of ``data``, batch by batch, with nothing kept but sums. Latency is
    that of one call on the first batch: warmed up, the contenders take turns round by round, inputs
    already in the contender's dtype. The user's model is left as it was.

    Args:
        model: the float32 model on the CPU.
        q: the same model, quantized.
        data: any iterable of batches, of the same kinds as `quantize` takes for calibration.
        metric: ``"top1"`` or ``"top5"`` (percent; labels are class indices), or a function
            ``(outputs, labels) -> float`` of the whole set, whose outputs are then kept and joined
            along the batch. ``None`` is top-1 where the labels allow it. Agreement with fp32 and
            SQNR are always measured.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        runtimes: a row for each of them; ``None`` is ``q``'s own.
        threads: of torch, while measuring; ``None`` leaves the number as it is.
        rounds: turns of each contender; ``None`` takes what fits into about ten seconds.
        progress: bars on a terminal.

    Raises:
        InputError: no data, outputs that are NaN or infinite, a batch or metric that does not fit.
        RuntimeUnavailable: one of ``runtimes`` cannot run here.

    Example:
        >>> print(octavo.compare(model, q, test_loader))  # doctest: +SKIP
    """
    _check_model(model)
    new_metric = metric_factory(metric)
    with evaluating(model), torch.no_grad(), thread_count(threads) as thread_number:
        contenders = _contenders(model, q, runtimes, new_metric)
        batches = _batches(model, track(data, "comparing", progress), inputs)
        first, samples = _judge(contenders, batches, metric_is_required=metric is not None)
        rest_s = REST_S if FOREIGN & {c.runtime for c in contenders} else 0.0
        calls = _calls(contenders, first)
        times = interleave(calls, rounds=rounds, rest_s=rest_s, progress=progress)
        sizes = _sizes(model, q)
    return Comparison(
        rows=tuple(_row(c, sizes, times, _batch_size(first)) for c in contenders),
        metric=contenders[0].task.name,
        samples=samples,
        batch_size=_batch_size(first),
        threads=thread_number,
        rounds=len(times["fp32"].rounds),
        environment=describe_machine(),
        notes=tuple(_notes(contenders)),
    )


@dataclass
class _Contender:
    """A model that takes part, and what is known of it so far; an ``error`` ends its part."""

    name: str
    runtime: str
    model: nn.Module
    task: TaskMetric
    dtype: torch.dtype | None = None
    pixels: Pixels | None = None
    error: str | None = None
    likeness: Likeness = field(default_factory=Likeness)
    counts: PairedCounts = field(default_factory=PairedCounts)

    def call_on(self, batch: Batch) -> Callable[[], Any]:
        """A call of the model, its inputs already normalized and cast where it wants that."""
        batch = with_floats(batch, self.pixels)
        args, kwargs = batch.args, batch.kwargs
        if self.dtype is not None:
            args, kwargs = _cast((args, kwargs), self.dtype)
        return lambda: self.model(*args, **kwargs)

    def outputs(self, batch: Batch) -> Any:
        """What it answers; that of a contender with its own dtype in float32."""
        outputs = self.call_on(batch)()
        return outputs if self.dtype is None else _cast(outputs, torch.float32)


def _contenders(
    model: nn.Module,
    q: QuantizedModel,
    runtimes: Sequence[str] | None,
    new_metric: Callable[[], TaskMetric],
) -> list[_Contender]:
    """fp32 first, then bf16, then int8 in each runtime."""
    pixels = Pixels.from_dict(q.provenance.get("pixels"))
    half = _Contender("bf16", "eager", model, new_metric(), torch.bfloat16, pixels)
    try:
        half.model = copy.deepcopy(model).to(torch.bfloat16)
    except Exception as error:  # noqa: BLE001  whatever a module's own __deepcopy__ raises
        half.error = _one_line(error)
    names = list(dict.fromkeys(runtimes or [q.runtime]))
    quantized = [
        _Contender(
            name="int8" if len(names) == 1 else f"int8 {name}",
            runtime=lowered.lowered.runtime,
            model=lowered,
            task=new_metric(),
        )
        for name, lowered in ((n, q if n == q.runtime else q.lower(n)) for n in names)
    ]
    fp32 = _Contender("fp32", "eager", model, new_metric(), pixels=pixels)
    return [fp32, half, *quantized]


def _batches(
    model: nn.Module, data: Iterable[Any], inputs: Callable[[Any], Any] | None
) -> Iterator[Batch]:
    signature = Signature.of(model.forward)
    return (split_batch(batch, signature, inputs) for batch in data)


def _judge(
    contenders: Sequence[_Contender], batches: Iterable[Batch], *, metric_is_required: bool
) -> tuple[Batch, int]:
    """Run all batches through all contenders; returns the first batch and the number of samples."""
    fp32, *others = contenders
    first, samples = None, 0
    for index, batch in enumerate(batches):
        reference = _reference_outputs(fp32, index, batch)
        right = fp32.task.update(reference, batch.labels)
        fp32.counts.update(right, right)
        if fp32.task.problem is not None and metric_is_required:
            raise InputError(
                f"metric={fp32.task.name!r} cannot be computed on batch {index}: "
                f"{fp32.task.problem}; give class indices, or metric=(outputs, labels) -> float"
            )
        for contender in others:
            if contender.error is None:
                _judge_one(contender, batch, reference, right)
        first = first or batch
        samples += _batch_size(batch)
    if first is None:
        raise InputError(
            "data is empty: compare needs at least one batch (an iterator that was already read "
            "through has none left)"
        )
    return first, samples


def _judge_one(
    contender: _Contender, batch: Batch, reference: Any, fp32_right: Tensor | None
) -> None:
    """What goes wrong in bf16 is a line in the table; what goes wrong in int8 must be known."""
    try:
        outputs = contender.outputs(batch)
    except Exception as error:
        if contender.dtype is None:
            raise
        contender.error = _one_line(error)
        return
    if _all_finite(outputs):
        contender.likeness.update(reference, outputs)
        contender.counts.update(fp32_right, contender.task.update(outputs, batch.labels))
    else:
        contender.error = "its outputs hold NaN or infinite values"


def _reference_outputs(fp32: _Contender, index: int, batch: Batch) -> Any:
    """What the float model answers.

    Raises:
        InputError: the batch is empty, or the model fails on it, or its answer is not finite.
    """
    if any(tensor.numel() == 0 for tensor in _tensors(batch)):
        raise InputError(f"batch {index} is empty ({_described(batch)}): leave it out")
    try:
        outputs = fp32.outputs(batch)
    except Exception as error:
        raise InputError(
            f"the float model fails on batch {index} ({_described(batch)}): {_one_line(error)}; "
            "if the batch holds more than the model's arguments, pass inputs=lambda batch: ..."
        ) from error
    if not float_tensors(outputs):
        raise InputError("the model returns no floating-point tensor: there is nothing to compare")
    if not _all_finite(outputs):
        inputs_too = not _all_finite((batch.args, batch.kwargs))
        raise InputError(
            f"the float model's outputs hold NaN or infinite values on batch {index}; "
            + ("so do its inputs" if inputs_too else "its inputs are finite: the model makes them")
        )
    return outputs


def _calls(contenders: Sequence[_Contender], batch: Batch) -> dict[str, Callable[[], Any]]:
    return {c.name: c.call_on(batch) for c in contenders if c.error is None}


def _sizes(model: nn.Module, q: QuantizedModel) -> dict[str, int]:
    """Bytes on disk by precision: each is written to a folder that is removed again."""
    state = _untied(model.state_dict())
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        files = {name: Path(folder, name) for name in ("fp32", "bf16", "int8")}
        save_file(state, files["fp32"])
        save_file(_cast(state, torch.bfloat16), files["bf16"])
        q.save(str(files["int8"]))
        return {name: path.stat().st_size for name, path in files.items()}


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


def _row(
    contender: _Contender,
    sizes: Mapping[str, int],
    times: Mapping[str, Latency],
    batch_size: int,
) -> Row:
    size = sizes[contender.name.split()[0]]
    row = Row(
        name=contender.name,
        runtime=contender.runtime,
        size_bytes=size,
        size_ratio=size / sizes["fp32"],
        error=contender.error,
    )
    if contender.error is not None:
        return row
    latency, counts = times[contender.name], contender.counts
    if counts.known:
        low, high = wilson(counts.right, counts.total)
        row = replace(row, interval=(100 * low, 100 * high))
    if counts.known and contender.name != "fp32":
        p_value = mcnemar(counts.lost, counts.won)
        row = replace(row, lost=counts.lost, won=counts.won, p_value=p_value)
    return replace(
        row,
        metric=contender.task.value(),
        agreement=contender.likeness.agreement,
        sqnr_db=contender.likeness.sqnr_db if contender.name != "fp32" else None,
        latency_ms=1e3 * latency.median_s,
        p95_ms=1e3 * latency.p95_s,
        throughput=batch_size / latency.median_s,
        speedup=latency.speedup_over(times["fp32"]),
    )


def _notes(contenders: Sequence[_Contender]) -> Iterator[str]:
    """What a reader has to know before trusting the numbers."""
    task = contenders[0].task
    if task.problem is not None:
        yield f"no {task.name}: {task.problem}"
    if contenders[0].pixels is not None:
        yield "int8 normalizes its pixels itself; fp32 and bf16 are given them normalized"
    for contender in contenders:
        if isinstance(contender.model, QuantizedModel):
            fallbacks = contender.model.lowered.fallbacks
            reasons = "; ".join(sorted(set(fallbacks.values())))
            if fallbacks:
                yield f"{contender.name}: {len(fallbacks)} layers run in float here: {reasons}"


def _check_model(model: nn.Module) -> None:
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    away = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if away is not None:
        raise InputError(f"the model is on {away}; compare measures on the CPU: call model.cpu()")
    if tensors and not any(t.dtype is torch.float32 for t in tensors):
        raise InputError(f"the model is {tensors[0].dtype}; compare needs the float32 model")


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def _all_finite(tree: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in float_tensors(tree))


def _tensors(batch: Batch) -> list[Tensor]:
    leaves = pytree.tree_leaves((batch.args, batch.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _batch_size(batch: Batch) -> int:
    return next((tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()), 1)


def _described(batch: Batch) -> str:
    kinds = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in _tensors(batch)]
    return ", ".join(kinds) or "no tensors"


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"
