"""`search`: the fastest or smallest model whose metric falls by no more than it may."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from octavo.batches import Signature, example_call
from octavo.errors import InputError, OctavoError
from octavo.evaluation import evaluating
from octavo.metrics import Metric
from octavo.model import QuantizedModel, load
from octavo.qat import QATModel
from octavo.search.journal import Journal, fingerprint
from octavo.search.measuring import Judge, Stopwatch, checked, value_of
from octavo.search.recipe import Recipe
from octavo.search.result import SearchResult
from octavo.search.trial import Candidate, Trial
from octavo.search.walk import Space, next_of, walk

OBJECTIVES = ("fastest", "smallest")


def search(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    max_drop: float,
    calibration: Iterable[Any] | None = None,
    data: Iterable[Any] | None = None,
    metric: str | Metric | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    train: Callable[[QATModel], object] | None = None,
    objective: str = "fastest",
    four_bits: bool = False,
    target: str = "x86",
    inputs: Callable[[Any], Any] | None = None,
    time_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SearchResult:
    """The fastest, or smallest, quantized model whose metric falls by at most ``max_drop``.

    It quantizes all, tries other observers, leaves the most sensitive layers in float, trains with
    rounding: each only as far as it is needed. The best so far is on disk after each trial; killed
    and started again with the same ``checkpoint``, it repeats no finished trial.

    Args:
        model: as for `octavo.quantize`, and so are ``example_inputs``, ``target`` and ``inputs``.
        max_drop: what the metric may lose, in its own unit (points of percent for top-1).
        calibration: batches; static quantization is not tried without. A list or a DataLoader, as
            it is iterated for each trial.
        data: batches with labels to measure the metric on, as for `octavo.compare`; the
            calibration data without. Likewise iterated for each trial.
        metric: as for `octavo.compare`.
        evaluate: instead of ``data`` and ``metric``: from a model to a number, the higher the
            better. It has to give the same number for the same model.
        train: trains a `QATModel` in place; training with rounding is not tried without.
        objective: ``"fastest"`` or ``"smallest"``.
        four_bits: try weights of four bits too.
        time_budget: seconds; no trial is begun that would probably end after it.
        checkpoint: folder for trials and the best model.
        progress: bars on a terminal.

    Raises:
        InputError: the metric raises, is NaN or differs between two calls; the budget is too small
            for one trial; the checkpoint is of another search.
        CaptureError: the model cannot be exported.

    Example:
        >>> found = octavo.search(  # doctest: +SKIP
        ...     model, calibration=loader, data=loader, max_drop=0.5, time_budget=600)
        >>> print(found.verdict())  # doctest: +SKIP
    """
    started = time.perf_counter()
    if objective not in OBJECTIVES:
        raise InputError(f"objective is {objective!r}; one of {list(OBJECTIVES)}")
    measured = data if data is not None else calibration
    _check_repeatable(calibration=calibration, data=measured)
    if evaluate is None and measured is None:
        raise InputError("search needs data to measure the metric on, or evaluate=")
    signature = Signature.of(model.forward)
    source = calibration if calibration is not None else measured
    example, _ = example_call(example_inputs, source, signature, inputs)
    judge = evaluate or Judge(measured or [], metric, signature, inputs)
    with evaluating(model):
        float_metric = checked(judge, model)
    about = {
        "model": fingerprint(model),
        "target": target,
        "float metric": float_metric,
        "max_drop": max_drop,
        "four bits": four_bits,
    }
    journal = Journal(checkpoint, about)
    stopwatch = Stopwatch(model, example)
    recipe = Recipe(model, example, calibration, target, inputs, train, progress)
    space = Space(
        target,
        max_drop,
        static=calibration is not None,
        four_bits=four_bits,
        trained=train is not None,
        ranking=lambda mode: recipe.ranking(source or [], mode),
    )
    steps = walk(space)
    best: tuple[Trial, Candidate, QuantizedModel | None] | None = None
    candidate: Candidate | None = next(steps)
    while candidate is not None:
        trial, made = journal.trials.get(candidate.name), None
        if trial is None:
            if _out_of_time(time_budget, started, journal):
                break
            trial, made = _tried(candidate, recipe, judge, stopwatch, float_metric)
        if trial.meets(max_drop) and (
            best is None or trial.cost(objective) < best[0].cost(objective)
        ):
            best = trial, candidate, made
            if made is not None:  # first the model, so that no trial stands without it
                made.provenance["candidate"] = trial.name
                journal.keep_best(made)
        journal.add(trial)
        candidate = next_of(steps, trial)
    if not journal.trials:
        raise InputError(
            f"time_budget={time_budget} is too small for one trial: the float model alone took "
            f"{time.perf_counter() - started:.1f} s"
        )
    return SearchResult(
        best=None if best is None else best[0],
        model=None if best is None else best[2] or _again(journal, best[1], recipe),
        trials=tuple(journal.trials.values()),
        objective=objective,
        max_drop=max_drop,
        float_metric=float_metric,
        float_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        bf16_over_fp32=stopwatch.bf16(),
        complete=candidate is None,
        seconds=time.perf_counter() - started,
    )


def _check_repeatable(**data: Iterable[Any] | None) -> None:
    for name, batches in data.items():
        if batches is not None and iter(batches) is batches:
            raise InputError(
                f"{name} can be iterated only once, and each trial needs it: pass a list or a "
                "DataLoader"
            )


def _tried(
    candidate: Candidate,
    recipe: Recipe,
    judge: Callable[[nn.Module], float],
    stopwatch: Stopwatch,
    float_metric: float,
) -> tuple[Trial, QuantizedModel | None]:
    """A candidate built and measured; one that cannot be is a trial with an error."""
    started = time.perf_counter()
    nothing = Trial(candidate.name, candidate.reason, candidate.in_float)
    try:
        q = recipe.build(candidate)
        value = value_of(judge, q)
    except OctavoError as error:
        seconds = time.perf_counter() - started
        return replace(nothing, seconds=seconds, error=str(error)), None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.octavo"
        q.save(file)
        size = file.stat().st_size
    summary = q.summary()
    over_fp32 = stopwatch.over_fp32(q)
    trial = replace(
        nothing,
        metric=value,
        drop=float_metric - value,
        size_bytes=size,
        over_fp32=over_fp32,
        int8=summary.int8,
        layers=summary.layers,
        seconds=time.perf_counter() - started,
    )
    return trial, q


def _out_of_time(budget: float | None, started: float, journal: Journal) -> bool:
    """Whether one more trial, as long as the longest so far, would end too late."""
    if budget is None:
        return False
    longest = max((trial.seconds for trial in journal.trials.values()), default=0.0)
    return time.perf_counter() - started + longest > budget


def _again(journal: Journal, candidate: Candidate, recipe: Recipe) -> QuantizedModel:
    """The best model, of an earlier run of this search: from its file, or made again."""
    if journal.best_file is not None:
        kept = load(journal.best_file)
        if kept.provenance.get("candidate") == candidate.name:
            return kept
    made = recipe.build(candidate)
    made.provenance["candidate"] = candidate.name
    journal.keep_best(made)
    return made
