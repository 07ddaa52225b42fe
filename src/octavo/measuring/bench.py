"""`bench`: how fast a quantized model is on each runtime, beside fp32 and bf16.

The float model is the file's own graph without its rounding: the same operators, weights that were
rounded once, the same speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import COUNT, FILE, NAMES, NUMBER, Kind, called_rightly, expect, optional
from octavo.display import Result, Table, percent
from octavo.errors import InputError, MissingExtra, OctavoError, first_line
from octavo.graph.batches import Batch, arguments_in
from octavo.graph.copying import copied
from octavo.graph.evaluation import evaluating
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.cold_start import ColdStart, cold_start
from octavo.measuring.contenders import cast
from octavo.measuring.machine import describe_machine
from octavo.model.kinds import require_float
from octavo.model.loading import load
from octavo.model.model import QuantizedModel
from octavo.model.parts_file import holds_parts
from octavo.model.verbs import load_beside, summary
from octavo.progress import track
from octavo.quantization.float_graph import without_rounding
from octavo.runtimes import ORACLE, RUNTIMES, has_own_threads
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.timing import REST_S, interleave, thread_count

BATCHES = (1, 8, 32)
SECONDS = 10.0  # of timing for each batch size

Run = Callable[..., Any]
# Of the float model, of it in bf16, and of the quantized one on a runtime: what can be called, and
# what of it is on integers, in words.
Makers = tuple[
    Callable[[], tuple[Run, str]],
    Callable[[], tuple[Run, str]],
    Callable[[str], tuple[Run, str]],
]

_SIZES = Kind(
    lambda sizes: isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes),
    "give a list of batch sizes, [1, 8]",
)


@dataclass(frozen=True)
class BenchRow:
    """One contender.

    Attributes:
        name: ``"fp32"``, ``"bf16"``, ``"int8 <runtime>"``, or that with ``", batch known"``, where
            each batch has a program of its own, see ``batch`` of `octavo.QuantizedModel.lower`.
        latency_ms: batch size -> median of a call, in milliseconds.
        load_s, memory_mb: see `octavo.measuring.cold_start.ColdStart`; ``None`` for float models.
        integers: the share of the multiply-adds that read integers, in words; ``""`` for float
            models.
        error: why it has no numbers; ``""`` where it has.
        runtime: what runs it; ``""`` for float models.
    """

    name: str
    latency_ms: Mapping[int, float]
    load_s: float | None = None
    memory_mb: float | None = None
    integers: str = ""
    error: str = ""
    runtime: str = ""

    def throughput(self, batch: int) -> float:
        """Samples a second."""
        return 1e3 * batch / self.latency_ms[batch]


@dataclass(frozen=True)
class Bench(Result):
    """What `bench` found. Prints as a table.

    Attributes:
        file: the ``.octavo`` file.
        threads: of every contender.
        rows: the contenders, see `octavo.measuring.bench.BenchRow`: milliseconds, seconds of
            loading, megabytes of memory.
        environment: CPU, instruction set and torch's version.

    Example:
        >>> from octavo.measuring.bench import BenchRow
        >>> rows = BenchRow("fp32", {1: 2.0}), BenchRow("int8 torch", {1: 0.5})
        >>> timed = octavo.Bench("model.octavo", 2, rows, {})
        >>> timed.fastest(1), timed.rows[1].throughput(1)
        ('int8 torch', 2000.0)
    """

    file: str
    threads: int
    rows: tuple[BenchRow, ...]
    environment: Mapping[str, str]

    def fastest(self, batch: int) -> str:
        """Name of the quickest contender at a batch size.

        Args:
            batch: one of those that were timed.

        Raises:
            ValueError: it is none of them.
        """
        timed = [row for row in self.rows if batch in row.latency_ms]
        return min(timed, key=lambda row: row.latency_ms[batch]).name

    def table(self) -> Table:
        batches = sorted({batch for row in self.rows for batch in row.latency_ms})
        times = (f"ms at {batch}" for batch in batches)
        columns = ("contender", *times, "samples/s", "load s", "memory MB", "on integers")
        title = f"{self.file}, {self.threads} threads, {self.environment.get('cpu', '')}"
        failures = (f"{row.name} could not run: {row.error}" for row in self.rows if row.error)
        rows = (_cells(row, batches) for row in self.rows)
        return Table(columns, tuple(rows), title, tuple(failures))


def _cells(row: BenchRow, batches: Sequence[int]) -> tuple[str, ...]:
    times = row.latency_ms
    return (
        row.name,
        *(f"{times[batch]:.2f}" if batch in times else "-" for batch in batches),
        f"{max(map(row.throughput, times)):.0f}" if times else "-",
        "-" if row.load_s is None else f"{row.load_s:.2f}",
        "-" if row.memory_mb is None else f"{row.memory_mb:.0f}",
        row.integers or "-",
    )


@called_rightly()
def bench(
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = BATCHES,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
    progress: bool = True,
    model: nn.Module | None = None,
    example_inputs: Any = None,
) -> Bench:
    """Time a file on every runtime, beside fp32 and bf16, in turns.

    Load time and memory are those of a new process each. A contender that cannot run is a row with
    its reason.

    Args:
        path: a ``.octavo`` file.
        batches: batch sizes.
        runtimes: names; ``None`` is all that are installed.
        threads: of every contender; ``None`` is torch's own number.
        seconds: of timing, for each batch size.
        progress: a bar in terminals and notebooks, lines in logs.
        model: for a file of a model with parts: the float model, as for `octavo.load`. It is left
            as it was.
        example_inputs: for such a file: the call that is timed, as `octavo.quantize` takes it. It
            is not repeated to other batch sizes, and load time and memory are not measured, since a
            new process has not the model's code.

    Raises:
        InputError: no batch size, or one below 1; or a file of parts without its model or a call.
        ArtifactError: the file is missing or damaged.

    Example:
        >>> q.save("model.octavo")
        >>> timed = octavo.bench("model.octavo", batches=[1], runtimes=["torch"], seconds=0.1)
        >>> [row.name for row in timed.rows]
        ['fp32', 'bf16', 'int8 torch']
    """
    expect(FILE, path=path)
    expect(_SIZES, batches=batches)
    expect(NUMBER, seconds=seconds)
    optional(NAMES, runtimes=runtimes)
    optional(COUNT, threads=threads)
    if not batches or min(batches) < 1:
        raise InputError(f"batches={list(batches)}: give at least one size, all of 1 or more")
    if holds_parts(path):
        return _of_parts(path, model, example_inputs, runtimes, threads, seconds, progress)
    if model is not None or example_inputs is not None:
        raise InputError(
            f"{os.fspath(path)} holds one graph, which needs neither model= nor example_inputs=: "
            "leave them out; batches= says what is timed"
        )
    q = load(path, runtime="reference")
    graph = q.graph
    with thread_count(threads) as count, torch.inference_mode():
        runs, rows = _made(_of_graph(q, count), runtimes, progress)
        times: dict[str, dict[int, float]] = {}
        for batch in batches:
            inputs = random_inputs(graph, batch)
            known, own = _for_one_batch(q, rows, batch, count)
            rows |= {name: row for name, row in own.items() if row.error or name not in rows}
            calls = {name: partial(run, *inputs) for name, run in {**runs, **known}.items()}
            latencies = interleave(calls, budget_s=seconds, rest_s=REST_S, progress=progress)
            for name, latency in latencies.items():
                times.setdefault(name, {})[batch] = 1e3 * latency.median_s
    finished = [
        replace(row, latency_ms=times.get(name, {}), **_cold(path, row, min(batches), count))
        for name, row in track(rows.items(), "starting each in a new process", progress)
    ]
    return Bench(os.fspath(path), count, tuple(finished), describe_machine())


def _of_parts(
    path: str | os.PathLike[str],
    model: nn.Module | None,
    example_inputs: Any,
    runtimes: Sequence[str] | None,
    threads: int | None,
    seconds: float,
    progress: bool,
) -> Bench:
    """The whole model, its parts on each runtime.

    Raises:
        InputError: there is no model, or no call of it.
    """
    if model is None or example_inputs is None:
        raise InputError(
            f"{os.fspath(path)} holds parts of a model, which runs in Python: give the float model "
            "and a call of it, octavo.bench(path, model=net, example_inputs=(images,)); on the "
            "command line --model and --data"
        )
    require_float(model, "bench")
    call = arguments_in(example_inputs).apart()
    with thread_count(threads) as count, torch.no_grad(), evaluating(model):
        runs, rows = _made(_of_model(path, model, call), runtimes, progress)
        latencies = interleave(runs, budget_s=seconds, rest_s=REST_S, progress=progress)
    times = {name: {call.size: 1e3 * latency.median_s} for name, latency in latencies.items()}
    finished = (replace(row, latency_ms=times.get(name, {})) for name, row in rows.items())
    return Bench(os.fspath(path), count, tuple(finished), describe_machine())


def _of_model(path: Any, model: nn.Module, call: Batch) -> Makers:
    def half() -> tuple[Run, str]:
        own = copied(model).to(torch.bfloat16)
        cut = Batch(*cast((call.args, call.kwargs), torch.bfloat16))
        cut.run(own)
        return lambda: cut.run_as_it_is(own), ""

    def quantized(runtime: str) -> tuple[Run, str]:
        q = load_beside(path, model, runtime)
        call.run(q)
        share = summary(q).share
        return lambda: call.run_as_it_is(q), "-" if share is None else percent(share)

    return (lambda: (lambda: call.run_as_it_is(model), "")), half, quantized


def _of_graph(q: QuantizedModel, threads: int) -> Makers:
    plain = without_rounding(q.graph)
    return (
        lambda: (run_of(plain), ""),
        lambda: (_bf16_run(plain, random_inputs(plain, 1)), ""),
        lambda runtime: _lowered(q, runtime, threads),
    )


def _made(
    makers: Makers, runtimes: Sequence[str] | None, progress: bool
) -> tuple[dict[str, Run], dict[str, BenchRow]]:
    """What can be called, and a row for each contender."""
    runs: dict[str, Run] = {}
    rows: dict[str, BenchRow] = {}
    fp32, bf16, int8 = makers
    contenders: dict[str, tuple[str, Callable[[], tuple[Run, str]]]] = {
        "fp32": ("", fp32),
        "bf16": ("", bf16),
    }
    chosen = [n for n in RUNTIMES if n != ORACLE]
    for runtime in chosen if runtimes is None else runtimes:
        contenders[f"int8 {runtime}"] = (runtime, partial(int8, runtime))
    for name, (runtime, make) in track(contenders.items(), "lowering", progress):
        row = BenchRow(name, {}, runtime=runtime)
        try:
            runs[name], integers = make()
            rows[name] = replace(row, integers=integers)
        except MissingExtra as error:
            if runtimes is not None:
                rows[name] = replace(row, error=str(error))
        except (OctavoError, RuntimeError, TypeError) as error:
            rows[name] = replace(row, error=first_line(error))
    return runs, rows


def _lowered(q: QuantizedModel, runtime: str, threads: int) -> tuple[Run, str]:
    # The others have torch's threads.
    model = q.lower(runtime, threads=threads if has_own_threads(runtime) else None)
    share = model.summary().coverage.share
    return model.lowered.run, "-" if share is None else percent(share)


def _for_one_batch(
    q: QuantizedModel, rows: Mapping[str, BenchRow], batch: int, threads: int
) -> tuple[dict[str, Run], dict[str, BenchRow]]:
    """The runtimes that may be faster where they know the batch, knowing it; a row for each."""
    runs: dict[str, Run] = {}
    own: dict[str, BenchRow] = {}
    for row in rows.values():
        if row.runtime and not row.error and _may_gain(row.runtime):
            name = f"{row.name}, batch known"
            own[name] = BenchRow(name, {})
            try:
                model = q.lower(row.runtime, threads=threads, batch=batch, check=False)
                runs[name] = model.lowered.run
            except OctavoError as error:
                own[name] = replace(own[name], error=f"batch {batch}: {first_line(error)}")
    return runs, own


def _may_gain(runtime: str) -> bool:
    """Whether it has a program for any batch, and another one where it is told which."""
    known = RUNTIMES[runtime]
    return has_own_threads(runtime) and "batch" in known.options and not known.sized


def _cold(path: Any, row: BenchRow, batch: int, threads: int) -> dict[str, Any]:
    """Load time and memory of a runtime; nothing for float models and for those that failed."""
    if row.error or not row.runtime:
        return {}
    try:
        start: ColdStart = cold_start(path, row.runtime, batch=batch, threads=threads)
    except OctavoError as error:
        return {"error": str(error)}
    return {"load_s": start.load_s, "memory_mb": start.memory_mb}


def _bf16_run(graph: Graph, inputs: tuple[Tensor, ...]) -> Run:
    """All in bf16, or float32 with autocast where some operator does not take bf16."""
    run = run_of(replace(graph, constants={n: _half(t) for n, t in graph.constants.items()}))
    try:
        run(*map(_half, inputs))
        return lambda *tensors: run(*map(_half, tensors))
    except (RuntimeError, TypeError):
        plain = run_of(graph)

        def autocast(*tensors: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return plain(*tensors)

        return autocast


def _half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
