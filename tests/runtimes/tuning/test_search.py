"""The search for the fastest variant, on measurements that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_measurements import Made

import octavo
from octavo.errors import InputError, RuntimeUnavailable
from octavo.runtimes import RUNTIMES, Options, cpu
from octavo.runtimes.tuning import Tuning, Variant, tune
from octavo.runtimes.tuning.gain import LEAST
from octavo.runtimes.tuning.layers import all_layers

CPU = torch.device("cpu")


def steps(
    q: octavo.QuantizedModel, made: Made, runtimes: Any, budget: float | None = None, **more: Any
) -> list[Tuning]:
    told = {"measure": made.measure, "clock": made.clock, "runtimes": runtimes, **more}
    return list(tune(q.graph, CPU, Options(), q.check_inputs(), budget=budget, **told))


def costs(**parts: float) -> Callable[[Variant], float]:
    """Seconds of a variant: the product of what is said of its parts."""

    def seconds(variant: Variant) -> float:
        total = parts.get(variant.runtime, 1.0)
        total *= parts.get("sizes", 1.0) if variant.sizes else 1.0
        total *= parts.get("apart", 1.0) if not variant.joined else 1.0
        total *= parts.get("last", 1.0) if variant.channels_last else 1.0
        total *= parts.get(f"threads{variant.threads}", 1.0)
        for layer in variant.in_float:
            total *= parts.get(layer, 1.1)
        for layer in variant.in_bfloat16:
            total *= parts.get(f"narrow_{layer}", 1.1)
        return total

    return seconds


def test_what_is_faster_is_kept_part_by_part(quantized, toys, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    parts = {"quick": 0.5, "sizes": 0.9, "depthwise": 0.7, "apart": 0.8, "threads2": 0.75}
    made = Made(costs(**parts, narrow_stem=0.6, last=1.2))
    found = steps(quantized, made, toys)[-1]
    assert found.finished
    assert found.untuned == Variant("quick")
    assert found.best == Variant(
        "quick", ((2, 3, 8, 8),), 2, frozenset({"depthwise"}), frozenset({"stem"}), joined=False
    )
    assert found.over_untuned == pytest.approx(1 / (0.9 * 0.7 * 0.8 * 0.75 * 0.6))
    speeds = {(trial.choice, trial.value): trial.speed for trial in found.trials if trial.kept}
    assert speeds["threads", "2"] == pytest.approx(1 / 0.75)
    assert speeds["runtime and sizes", "quick, known sizes"] == pytest.approx(1 / 0.45)
    assert set(found.slowed) == {"depthwise", "stem"}
    assert found.slowed["depthwise"] == (
        "float is faster: with conv2d 8x1x3x3 (depthwise) in int8 the model takes 1.43x as long"
    )
    assert found.slowed["stem"].startswith("bfloat16 is faster: ")


def test_float_wins_where_it_is_faster(quantized, toys) -> None:
    layers = all_layers(quantized.graph).layers
    made = Made(lambda variant: 0.9 if variant.in_float == layers else 1.0)
    found = steps(quantized, made, toys)[-1]
    assert found.best.in_float == layers
    assert found.over_float == 1.0
    assert found.over_untuned == pytest.approx(1 / 0.9)


def test_a_gain_within_the_noise_is_none(quantized, toys) -> None:
    made = Made(costs(slow=0.8, depthwise=0.95), noise=0.2)
    found = steps(quantized, made, toys)[-1]
    assert found.best == found.untuned == Variant("slow")
    assert not any(trial.kept for trial in found.trials[1:])
    assert {trial.why for trial in found.trials if trial.speed and trial.speed > 1} == {
        "not by more than the noise"
    }


def test_of_runtimes_the_fastest_is_kept_however_noisy_the_first_one_is(quantized, toys) -> None:
    found = steps(quantized, Made(costs(quick=0.6), noise=7.5), toys, budget=0.5)[-1]
    assert found.best == found.untuned == Variant("quick")
    assert found.over_untuned == 1.0


def test_a_runtime_that_is_faster_once_and_slower_by_more_after_that_is_not_kept(
    quantized, toys
) -> None:
    calls = iter([0.9, *[1.3] * 100])  # of the quick one over the slow one

    def seconds(variant: Variant) -> float:
        return next(calls) if variant.runtime == "quick" and not variant.sizes else 1.0

    found = steps(quantized, Made(seconds, noise=0.5), toys, budget=0.5)[-1]
    assert found.best == Variant("slow")
    first = next(trial for trial in found.trials if trial.value == "quick")
    assert first.why == "slower, measured again"


def test_a_gain_that_is_not_there_again_is_none(quantized, toys) -> None:
    seen: set[Variant] = set()

    def only_at_first(variant: Variant) -> float:
        new = variant not in seen and not variant.plain
        seen.add(variant)
        return 0.5 if new else 1.0

    found = steps(quantized, Made(only_at_first), toys)[-1]
    assert found.best.plain
    assert "not by more than the noise, measured again" in {trial.why for trial in found.trials}


def test_float_that_was_faster_once_is_noise(quantized, toys) -> None:
    layers, calls = all_layers(quantized.graph).layers, iter([0.7, 1.2])
    made = Made(lambda variant: next(calls) if variant.in_float == layers else 1.0)
    found = steps(quantized, made, ["quick"], budget=0.1)[-1]  # only the last comparison has it
    assert list(calls) == []
    assert found.best == Variant("quick")
    assert found.over_float == pytest.approx(1.2)


def test_what_computes_something_else_is_refused(quantized, toys) -> None:
    found = steps(quantized, Made(costs(wrong=0.1)), (*toys, "wrong"))[-1]
    assert found.best.runtime != "wrong"
    assert found.untuned.runtime != "wrong"
    refused = [trial for trial in found.trials if trial.value == "wrong"]
    assert "the wrong runtime computes something else" in refused[0].why


def test_what_cannot_be_lowered_or_run_is_a_trial_with_its_reason(quantized, toys) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeUnavailable("not today")

    def breaks(graph: Any, *rest: Any) -> Any:
        lowered = RUNTIMES["slow"].lower(graph, *rest)
        return octavo_lowered(lowered, refuses)

    def octavo_lowered(lowered: Any, run: Any) -> Any:
        return type(lowered)(run, {}, {})

    record = type(RUNTIMES["slow"])
    RUNTIMES["absent"], RUNTIMES["broken"] = record(refuses), record(breaks)
    try:
        found = steps(quantized, Made(costs()), (*toys, "absent", "broken"))[-1]
    finally:
        del RUNTIMES["absent"], RUNTIMES["broken"]
    why = {trial.value: trial.why for trial in found.trials if trial.speed is None}
    assert why["absent"] == why["broken"] == "not today"


def test_no_runtime_at_all(quantized, toys) -> None:
    with pytest.raises(RuntimeUnavailable, match="no runtime can run this model here: wrong: the "):
        steps(quantized, Made(costs()), ["wrong"])


def test_the_last_comparison_decides(quantized, toys) -> None:
    late = Made(costs(depthwise=0.5))

    def measure(runs: Any, best: Variant, inputs: Any, **how: Any) -> Any:
        if any(variant.plain for variant in runs) and not best.plain:
            late.seconds_of = costs(depthwise=2.0)
        return Made.measure(late, runs, best, inputs)

    told = {"measure": measure, "clock": late.clock, "runtimes": ["quick"], "budget": None}
    found = list(tune(quantized.graph, CPU, Options(), quantized.check_inputs(), **told))[-1]
    assert found.best == found.untuned == Variant("quick")
    assert found.over_untuned == 1.0
    assert found.slowed == {}


def test_the_time_that_it_has(quantized, toys) -> None:
    made = Made(costs(depthwise=0.9), takes=10.0)
    found = steps(quantized, made, toys, budget=0.1)
    assert {trial.choice for trial in found[-1].trials} == {"runtime and sizes"}
    assert found[-1].finished
    assert found[-1].seconds == made.now == 20.0  # the runtimes, and the last comparison
    longer = Made(costs(depthwise=0.9), takes=10.0)
    more = steps(quantized, longer, toys, budget=50.0)
    assert len(more[-1].trials) > len(found[-1].trials)
    assert longer.now <= 50 + 2 * 10  # what had begun, and its second measurement


def test_it_goes_on_where_it_was_stopped(quantized, toys) -> None:
    whole = steps(quantized, Made(costs(quick=0.5, depthwise=0.7, threads1=0.8)), toys)[-1]
    made = Made(costs(quick=0.5, depthwise=0.7, threads1=0.8))
    told = {"measure": made.measure, "clock": made.clock, "runtimes": toys, "budget": None}
    run = tune(quantized.graph, CPU, Options(), quantized.check_inputs(), **told)
    begun = [next(run) for _ in range(3)][-1]
    run.close()
    assert not begun.finished
    again = Made(made.seconds_of)
    resumed = steps(quantized, again, toys, begun=begun)[-1]
    assert (resumed.best, resumed.untuned) == (whole.best, whole.untuned)
    assert [trial.key for trial in resumed.trials] == [trial.key for trial in whole.trials]
    assert len({trial.key for trial in resumed.trials}) == len(resumed.trials)
    other = steps(quantized, Made(costs()), ["slow"], begun=begun)[-1]
    assert other.best.runtime == "slow"


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_it_is_never_slower_than_untuned_or_float(quantized, seed: int) -> None:
    chance = random.Random(seed)
    known: dict[Variant, float] = {}

    def seconds(variant: Variant) -> float:
        return known.setdefault(variant, chance.uniform(0.5, 2.0))

    found = steps(quantized, Made(seconds), ["torch"])[-1]
    assert seconds(found.best) <= seconds(found.untuned)
    in_float = Variant("torch", in_float=all_layers(quantized.graph).layers)
    assert seconds(found.best) <= (1 + LEAST) * seconds(in_float)
    assert found.over_untuned >= 1.0


@pytest.mark.parametrize("budget", [0, -1.0, float("-inf"), float("nan")])
def test_no_time(quantized, budget: float) -> None:
    with pytest.raises(InputError, match=r"budget=.*: give seconds, more than 0"):
        steps(quantized, Made(costs()), None, budget=budget)


def test_runtimes_that_are_none(quantized) -> None:
    with pytest.raises(RuntimeUnavailable, match="there is no runtime 'nope'"):
        steps(quantized, Made(costs()), ["torch", "nope"])
    for names in ([], ["torch", "reference"]):
        with pytest.raises(InputError, match=r"runtimes is \[.*\]: name one at least, and not"):
            steps(quantized, Made(costs()), names)
