"""`compare`: what int8 costs and what it buys, against fp32 and bf16, in one process.

bf16 stands in the table because it is the honest baseline: it needs no calibration, and int8 that
loses to it is not a gain. Any number of quantized or other models stand beside them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import BATCHES, COUNT, FUNCTION, NAMES, called_rightly, expect, optional
from octavo.errors import InputError, OctavoError
from octavo.graph.batches import Batch, Signature, split_batch, with_floats
from octavo.graph.capture.capture import capture
from octavo.graph.evaluation import evaluating
from octavo.measuring.cold_start import ColdStart
from octavo.measuring.comparison_table import Comparison, Row
from octavo.measuring.contenders import Contender, check_model, contenders_of, one_line
from octavo.measuring.footprint import bytes_on_disk, cold_starts_of
from octavo.measuring.machine import describe_machine
from octavo.measuring.metrics import Metric, float_tensors, is_called, metric_factory
from octavo.measuring.next_tokens import Divergence, Perplexity, tells_next_tokens, with_next_tokens
from octavo.measuring.significance import mcnemar, wilson
from octavo.model.kinds import require_float
from octavo.model.model import QuantizedModel
from octavo.model.origin import check_made_of
from octavo.model.parts import parts_of
from octavo.model.parts_summary import summarize_parts
from octavo.model.summary import Summary
from octavo.model.verbs import summary
from octavo.progress import track
from octavo.runtimes import has_own_threads
from octavo.runtimes.timing import REST_S, Latency, interleave, thread_count


@called_rightly()
def compare(
    model: nn.Module,
    q: nn.Module | Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    metric: str | Metric | None = None,
    inputs: Callable[[Any], Any] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    cold_starts: bool = False,
    progress: bool = True,
) -> Comparison:
    """Put the float model, its bf16 copy and quantized models side by side.

    Quality is measured on all of ``data``, batch by batch, with nothing kept but sums. Latency is
    that of one call on the first batch: warmed up, the contenders take turns round by round, inputs
    already in the contender's dtype. The user's model is left as it was.

    Args:
        model: the float32 model on the CPU.
        q: the same model, quantized; or several by name, ``{"int8": q, "4 bits": other}``. A model
            among them that Octavo did not make takes part as it is.
        data: any iterable of batches, of the same kinds as `quantize` takes for calibration.
        metric: ``"top1"`` or ``"top5"`` (percent; labels are class indices), or a function
            ``(outputs, labels) -> float`` of the whole set, whose outputs are then kept and joined
            along the batch. ``"perplexity"``, with the loss beside it, is of causal language
            models: labels, or ``input_ids`` where there are none, are what follows each place;
            what is -100 or masked is left out. ``None`` is that where ``forward`` makes such a
            loss of labels, else top-1 where the labels allow it. Agreement with fp32 and SQNR are
            always measured, of causal language models the divergence of their distributions too.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        runtimes: a row of each quantized model for each of them; ``None`` is the model's own.
        threads: of torch, while measuring; ``None`` leaves the number as it is.
        rounds: turns of each contender; ``None`` takes what fits into about ten seconds.
        cold_starts: measure load time and peak memory too, each in a new process (`cold_start`).
            The float models are in Octavo's own file format there, as captured, so that all are
            loaded and run alike; models that Octavo did not make have none.
        progress: bars in terminals and notebooks, lines in logs.

    Raises:
        InputError: the models are swapped, or ``q`` was made of other weights; no data, outputs
            that are NaN or infinite, a batch or metric that does not fit.
        RuntimeUnavailable: one of ``runtimes`` cannot run here.

    Example:
        >>> found = octavo.compare(model, q, loader, rounds=3)
        >>> [row.name for row in found.rows], found.samples
        (['fp32', 'bf16', 'int8'], 256)
        >>> abs(found["int8"].metric - found["fp32"].metric) < 2  # points of top-1
        True
    """
    require_float(model, "compare")
    check_model(model)
    expect(BATCHES, data=data)
    optional(FUNCTION, inputs=inputs)
    optional(NAMES, runtimes=runtimes)
    optional(COUNT, threads=threads, rounds=rounds)
    by_tokens = is_called(metric, Perplexity.name)
    new_metric = Perplexity if by_tokens else metric_factory(metric)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        thread_number = stack.enter_context(thread_count(threads))
        contenders = contenders_of(model, q, runtimes, new_metric)
        for contender in contenders:
            stack.enter_context(evaluating(contender.model))
        signature = _signature(contenders)
        tracked = track(data, "comparing", progress)
        batches = (split_batch(batch, signature, inputs) for batch in tracked)
        first, samples = _judge(contenders, batches, signature, metric)
        rest_s = REST_S if any(has_own_threads(c.runtime) for c in contenders) else 0.0
        calls = _calls(contenders, first)
        times = interleave(calls, rounds=rounds, rest_s=rest_s, progress=progress)
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            sizes = bytes_on_disk(contenders, Path(folder))
            measured = contenders if cold_starts else []
            cold = cold_starts_of(measured, first, Path(folder), thread_number)
    rows = _rows(contenders, sizes, times, cold, first.size)
    return Comparison(
        rows=rows,
        metric=contenders[0].task.name,
        samples=samples,
        batch_size=first.size,
        threads=thread_number,
        rounds=len(times["fp32"].rounds),
        environment=describe_machine(),
        notes=tuple(_notes(contenders)),
    )


def _signature(contenders: Sequence[Contender]) -> Signature:
    """That of the float model, with all arguments that a quantized one was captured with."""
    quantized = (c.model for c in contenders if isinstance(c.model, QuantizedModel))
    captured = {name for q in quantized for name in q.graph.given_arguments}
    return Signature.of(contenders[0].model, captured)


def _judge(
    contenders: Sequence[Contender],
    batches: Iterable[Batch],
    signature: Signature,
    metric: str | Metric | None,
) -> tuple[Batch, int]:
    """Run all batches through all contenders; returns the first batch and the number of samples."""
    fp32, *others = contenders
    first, samples, of_next_tokens = None, 0, is_called(metric, Perplexity.name)
    for index, batch in enumerate(batches):
        if first is None:
            _check_origin(contenders, batch)
            of_next_tokens |= not callable(metric) and tells_next_tokens(fp32.model, batch)
            for contender in contenders if of_next_tokens and metric is None else ():
                contender.task = Perplexity()
            for contender in others if of_next_tokens else ():
                contender.divergence = Divergence()
        batch = with_next_tokens(batch, signature) if of_next_tokens else batch
        reference = _reference_outputs(fp32, index, batch)
        right = fp32.task.update(reference, batch.labels)
        fp32.counts.update(right, right)
        if fp32.task.problem is not None and metric is not None:
            raise InputError(
                f"metric={fp32.task.name!r} cannot be computed on batch {index}: "
                f"{fp32.task.problem}; give class indices, or metric=(outputs, labels) -> float"
            )
        for contender in others:
            if contender.error is None:
                _judge_one(contender, batch, reference, right)
        first = first or batch
        samples += batch.size
    if first is None:
        raise InputError(
            "data is empty: compare needs at least one batch (an iterator that was already read "
            "through has none left)"
        )
    return first, samples


def _check_origin(contenders: Sequence[Contender], batch: Batch) -> None:
    """The quantized models were made of the float one, as far as that can be captured here.

    Raises:
        InputError: one has other weights.
    """
    fp32 = contenders[0]
    floats = with_floats(batch, fp32.pixels)
    try:
        graph = capture(fp32.model, floats.args, floats.kwargs, progress=False)
    except OctavoError:  # whatever is wrong with the batch is said when it is run
        return
    quantized = {c.label: c.model for c in contenders if isinstance(c.model, QuantizedModel)}
    for label, model in quantized.items():
        # Those that were trained have weights of their own, which is what is compared.
        if "trained" not in model.provenance:
            with _about(label):
                check_made_of(graph, model)


@contextmanager
def _about(label: str) -> Iterator[None]:
    """Errors inside say which model they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label!r} was not made from this float model: {error}") from None


def _judge_one(
    contender: Contender, batch: Batch, reference: Any, fp32_right: Tensor | None
) -> None:
    """What goes wrong in bf16 is a line in the table; what goes wrong in int8 must be known."""
    try:
        outputs = contender.outputs(batch)
    except Exception as error:
        if contender.dtype is None:
            raise
        contender.error = one_line(error)
        return
    if _all_finite(outputs):
        try:
            contender.likeness.update(reference, outputs)
        except InputError:
            if isinstance(contender.model, QuantizedModel):
                raise
            contender.is_alike = False
        if contender.divergence is not None:
            contender.divergence.update(reference, outputs, batch.labels)
        contender.counts.update(fp32_right, contender.task.update(outputs, batch.labels))
    else:
        contender.error = "its outputs hold NaN or infinite values"


def _reference_outputs(fp32: Contender, index: int, batch: Batch) -> Any:
    """What the float model answers.

    Raises:
        InputError: the batch is empty, or the model fails on it, or its answer is not finite.
    """
    if any(tensor.numel() == 0 for tensor in batch.tensors):
        raise InputError(f"batch {index} is empty ({_described(batch)}): leave it out")
    try:
        outputs = fp32.outputs(batch)
    except Exception as error:
        raise InputError(
            f"the float model fails on batch {index} ({_described(batch)}): {one_line(error)}; "
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


def _calls(contenders: Sequence[Contender], batch: Batch) -> dict[str, Callable[[], Any]]:
    return {c.name: c.call_on(batch.apart()) for c in contenders if c.error is None}


def _rows(
    contenders: Sequence[Contender],
    sizes: Mapping[str, int],
    times: Mapping[str, Latency],
    cold: Mapping[str, ColdStart],
    batch_size: int,
) -> tuple[Row, ...]:
    rows = []
    for contender in contenders:
        size = sizes[contender.label]
        row = Row(contender.name, contender.runtime, size, size / sizes["fp32"])
        if contender.error is not None:
            rows.append(replace(row, error=contender.error))
            continue
        if contender.name in cold:
            start = cold[contender.name]
            row = replace(row, load_s=start.load_s, memory_mb=start.memory_mb)
        row = replace(row, integers=_on_integers(contender))
        row = _with_quality(row, contender)
        rows.append(_with_times(row, times[contender.name], times["fp32"], batch_size))
    return tuple(rows)


def _on_integers(contender: Contender) -> float | None:
    share = summary(contender.model).share if parts_of(contender.model) else None
    return None if share is None else 100 * share


def _with_quality(row: Row, contender: Contender) -> Row:
    counts = contender.counts
    if counts.known:
        low, high = wilson(counts.right, counts.total)
        row = replace(row, interval=(100 * low, 100 * high))
    if counts.known and contender.name != "fp32":
        p_value = mcnemar(counts.lost, counts.won)
        row = replace(row, lost=counts.lost, won=counts.won, p_value=p_value)
    is_measured = contender.is_alike and contender.name != "fp32"
    return replace(
        row,
        metric=contender.task.value(),
        loss=contender.task.loss if isinstance(contender.task, Perplexity) else None,
        agreement=contender.likeness.agreement if contender.is_alike else None,
        divergence=None if contender.divergence is None else contender.divergence.value(),
        sqnr_db=contender.likeness.sqnr_db if is_measured else None,
    )


def _with_times(row: Row, latency: Latency, fp32: Latency, batch_size: int) -> Row:
    return replace(
        row,
        latency_ms=1e3 * latency.median_s,
        p95_ms=1e3 * latency.p95_s,
        throughput=batch_size / latency.median_s,
        speedup=latency.speedup_over(fp32),
    )


def _notes(contenders: Sequence[Contender]) -> Iterator[str]:
    """What a reader has to know before trusting the numbers."""
    task = contenders[0].task
    if task.problem is not None:
        yield f"no {task.name}: {task.problem}"
    if contenders[0].pixels is not None:
        yield "int8 normalizes its pixels itself; fp32 and bf16 are given them normalized"
    for contender in contenders:
        if not contender.is_alike:
            yield f"{contender.name}: no SQNR, its outputs have other shapes than fp32's"
        if isinstance(contender.model, QuantizedModel):
            yield from _coverage(contender.name, contender.model.summary())
        elif parts_of(contender.model):
            yield f"{contender.name}: {summarize_parts(contender.model).headline}"


def _coverage(name: str, summary: Summary) -> Iterator[str]:
    yield f"{name}: {summary.headline}"
    fallbacks = summary.fallbacks
    if fallbacks:
        reasons = "; ".join(sorted(set(fallbacks.values())))
        yield f"{name}: {len(fallbacks)} layers run in float here: {reasons}"


def _all_finite(tree: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in float_tensors(tree))


def _described(batch: Batch) -> str:
    kinds = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in batch.tensors]
    return ", ".join(kinds) or "no tensors"
