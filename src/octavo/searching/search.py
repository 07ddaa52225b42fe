"""`search`: the fastest or smallest model whose metric falls by no more than it may."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from octavo.arguments import (
    FUNCTION,
    NUMBER,
    PATH,
    TEXT,
    called_rightly,
    expect,
    expect_repeatable,
    optional,
)
from octavo.errors import CaptureError, InputError, warn_user
from octavo.flow.finding import find_regions
from octavo.flow.running import Calls
from octavo.flow.settings import Only, Settings, scope_of
from octavo.graph.batches import Signature, example_call
from octavo.graph.capture.capture import capture
from octavo.graph.evaluation import evaluating
from octavo.graph.losses import signature_with_losses
from octavo.measuring.engines import opened, require
from octavo.measuring.footprint import float_bytes
from octavo.measuring.metrics import Metric
from octavo.model.kinds import require_float
from octavo.qat import QATModel
from octavo.quantization.weights import with_correction
from octavo.runtimes.cpu import has_bf16, host_target
from octavo.searching import identity, measuring
from octavo.searching.deadline import Deadline, OutOfTime
from octavo.searching.journal import Journal
from octavo.searching.loop import Loop
from octavo.searching.measuring import Judge, Stopwatch, checked
from octavo.searching.recipe import GraphRecipe, Recipe, RegionsRecipe
from octavo.searching.result import SearchResult
from octavo.searching.strategy import Space
from octavo.searching.worker import Workshop

OBJECTIVES = ("fastest", "smallest")


@called_rightly()
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
    target: str | None = None,
    inputs: Callable[[Any], Any] | None = None,
    time_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    engine: str | None = None,
    progress: bool = True,
    scope: str = "auto",
    only: Only | None = None,
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
        time_budget: seconds; no trial is begun that would probably end after it, and one that is
            under way then is given up.
        checkpoint: folder for trials and the best model.
        engine: ``"ray"`` makes and judges candidates on a Ray cluster, or on one that is started on
            this machine; the same trials as without. Latencies are always measured here.
        progress: bars in terminals and notebooks, lines in logs.
        scope, only: as for `octavo.quantize`: ``"auto"``, ``"model"`` or ``"regions"``. Regions are
            found once; the metric and the latencies are those of the whole model.

    Raises:
        InputError: the metric raises, is NaN or differs between two calls; the budget is too small
            for one trial; the checkpoint is of another search.
        CaptureError: the model cannot be exported.
        MissingExtra: Ray is not installed.

    Example:
        >>> found = octavo.search(model, calibration=loader, data=loader, max_drop=5.0)
        >>> found.model.save("fastest.octavo")
        >>> found.verdict().startswith(found.best.name)
        True
    """
    require_float(model, "search")
    expect(NUMBER, max_drop=max_drop)
    target = host_target() if target is None else target
    expect(TEXT, target=target, objective=objective)
    optional(NUMBER, time_budget=time_budget)
    optional(PATH, checkpoint=checkpoint)
    optional(FUNCTION, evaluate=evaluate, train=train, inputs=inputs)
    started = time.perf_counter()
    # The last trial's latency is measured after it.
    build_s = None if time_budget is None else time_budget - measuring.LATENCY_S
    deadline = Deadline.within(build_s)
    require(engine)
    if objective not in OBJECTIVES:
        raise InputError(f"objective is {objective!r}; one of {list(OBJECTIVES)}")
    measured = data if data is not None else calibration
    expect_repeatable("each trial needs it", calibration=calibration, data=measured)
    if evaluate is None and measured is None:
        raise InputError("search needs data to measure the metric on, or evaluate=")
    signature = Signature.of(model)
    source = calibration if calibration is not None else measured
    scope = scope_of(scope, only)
    if scope == "modules":
        raise InputError('scope="modules" is not searched: its layers are not timed one by one')
    if scope == "regions" and train is not None:
        raise InputError(_NO_TRAINING)
    example, _ = example_call(example_inputs, source, signature, inputs)
    stopwatch = Stopwatch(model, example)
    try:
        with evaluating(model), deadline.watching(model):
            common = {
                **{"model": model, "signature": signature, "example": example},
                **{"calibration": calibration, "target": target, "inputs": inputs},
                **{"progress": progress, "deadline": deadline},
            }
            recipe = _recipe(common, train, scope, only)
            signature = recipe.signature
            judge = evaluate or Judge(measured or [], metric, signature, inputs)
            float_metric = checked(judge, model)
            bf16_over_fp32 = stopwatch.bf16()
        about: dict[str, Any] = {}
        if checkpoint is not None:
            about = {
                **{"model": identity.of_model(model), "graph": identity.of_graphs(recipe.graphs())},
                **{"target": target, "objective": objective, "four bits": four_bits},
                **{"max_drop": max_drop, "float metric": float_metric},
                "calibration": identity.of_data(_within(deadline, calibration), signature, inputs),
                "data": identity.of_data(_within(deadline, data), signature, inputs),
                **identity.of_functions(evaluate=evaluate, metric=metric, train=train),
                **identity.circumstances(),
            }
    except OutOfTime:
        raise _too_small(time_budget, started) from None
    journal = Journal(checkpoint, about)
    with opened(engine, Workshop(recipe, judge, float_metric).opened) as workers:
        loop = Loop(workers, recipe, stopwatch, journal, objective, max_drop)
        complete = loop.run(
            Space(
                target,
                max_drop,
                static=calibration is not None,
                bfloat16=objective == "smallest" or has_bf16(),
                four_bits=four_bits,
                trained=train is not None,
                ranking=lambda mode: recipe.ranking(source or [], mode),
                slower=loop.slower,
            )
        )
    if not journal.trials:
        raise _too_small(time_budget, started)
    return SearchResult(
        best=loop.best,
        model=loop.best_model(),
        trials=tuple(journal.trials.values()),
        objective=objective,
        max_drop=max_drop,
        float_metric=float_metric,
        float_bytes=float_bytes(model),
        bf16_over_fp32=bf16_over_fp32,
        complete=complete,
        seconds=time.perf_counter() - started,
        layer_times=journal.layer_times,
    )


_NO_TRAINING = (
    "train= is for a model that is one graph, and this one has regions: leave train= out, or take "
    'scope="model"'
)


def _recipe(
    common: Mapping[str, Any],
    train: Callable[[QATModel], object] | None,
    scope: str,
    only: Only | None,
) -> Recipe:
    """That of the whole model where it can be captured, else of its regions.

    Raises:
        CaptureError: neither can be.
        InputError: there is a training loop, and no graph to train.
    """
    model, example, progress, why = common["model"], common["example"], common["progress"], ""
    if scope != "regions":
        try:
            graph = capture(model, example.args, example.kwargs, progress=progress)
            signature = signature_with_losses(model, graph, example)
            return GraphRecipe(**{**common, "signature": signature}, graph=graph, train=train)
        except CaptureError as error:
            if scope == "model":
                raise
            why = str(error)
    if train is not None:
        raise InputError(f"{why}. And {_NO_TRAINING}")
    data, target = common["calibration"], common["target"]
    mode = "dynamic" if data is None else "static"
    methods = with_correction((), data is not None)
    settings = Settings(target, mode, "float32", None, methods, only, progress=progress)
    batches = None if data is None else common["deadline"].over(data)
    calls = Calls.of(model, example.kwargs or example.args, batches, common["inputs"], None)
    found = find_regions(model, calls, settings, why)
    if why:
        regions = ", ".join(found.regions)
        warn_user(f"{why}. So its regions are searched: {regions}")
    return RegionsRecipe(**common, found=found)


def _within(deadline: Deadline, data: Iterable[Any] | None) -> Iterable[Any] | None:
    return None if data is None else deadline.over(data)


def _too_small(time_budget: float | None, started: float) -> InputError:
    return InputError(
        f"time_budget={time_budget} is too small for one trial: it was up after "
        f"{time.perf_counter() - started:.1f} s, before the first was finished"
    )
