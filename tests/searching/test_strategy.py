"""The order of the candidates, with trials made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from octavo.searching.layer_times import LayerTime
from octavo.searching.strategy import Known, Space, foreseen, next_of, walk
from octavo.searching.trial import Candidate, Trial

LAYERS = tuple("abcdefgh")


def _space(layers: Sequence[str] = LAYERS, **changes: object) -> Space:
    settings: dict[str, object] = {"static": True, "bfloat16": False, "four_bits": False}
    settings |= {"trained": False, "ranking": lambda mode: layers}
    settings |= {"slower": lambda candidate: ()} | changes
    return Space("x86", 0.5, **settings)  # type: ignore[arg-type]


def _walked(space: Space, drop_of: Callable[[Candidate], float | None]) -> list[Candidate]:
    """All candidates, where each loses so much; ``None`` fails."""
    steps = walk(space)
    candidate: Candidate | None = next(steps)
    found = []
    while candidate is not None:
        found.append(candidate)
        drop = drop_of(candidate)
        error = "it cannot be" if drop is None else ""
        trial = Trial(candidate.name, candidate.reason, candidate.in_float, 0.0, drop, error=error)
        candidate = next_of(steps, trial)
    return found


def test_where_the_default_is_enough_little_else_is_tried() -> None:
    assert [c.name for c in _walked(_space(), lambda c: 0.1)] == ["static", "dynamic"]


def test_the_fewest_layers_in_float_that_are_enough() -> None:
    """Five of the eight have to be: 1, 2 and 4 are too few, 6 and 5 are between 4 and 8."""
    space = _space()
    found = _walked(space, lambda c: 0.4 if len(c.in_float) >= 5 else 2.0 - 0.1 * len(c.in_float))
    assert [c.name for c in found[:6]] == [
        "static",
        "dynamic",
        "static, histogram",
        "static, mse",
        "static, percentile",
        "static, moving_average_min_max",
    ]
    assert [len(c.in_float) for c in found[6:]] == [1, 2, 4]  # 8 of 8 would be the float model
    found = _walked(_space("abcdefghijkl"), lambda c: 0.4 if len(c.in_float) >= 5 else 2.0)
    assert [len(c.in_float) for c in found[6:]] == [1, 2, 4, 8, 6, 5]
    assert found[-1].in_float == tuple("abcde")
    rules = found[-1].mapping.rules
    assert [(rule.pattern, rule.precision) for rule in rules] == [(n, None) for n in "abcde"]


def test_layers_are_taken_from_the_candidate_that_loses_least() -> None:
    drops = {"static": 3.0, "static, mse": 1.0}
    found = _walked(_space(), lambda c: drops.get(c.name, 2.0))
    assert found[6].name == "static, mse, 1 of 8 layers in float"
    assert found[6].qconfig is not None


def test_training_comes_last_and_only_if_it_is_needed() -> None:
    names = [c.name for c in _walked(_space(trained=True), lambda c: 2.0)]
    assert names[-1] == "trained with rounding"
    assert "trained with rounding" not in [
        c.name for c in _walked(_space(trained=True), lambda c: 0.0)
    ]


def test_four_bits_where_they_are_allowed() -> None:
    names = [c.name for c in _walked(_space(four_bits=True, trained=True), lambda c: 0.0)]
    assert names[2:] == [
        "weight-only int4",
        "static, 4-bit weights",
        "trained with rounding, 4-bit weights",
    ]


def test_without_calibration_data_nothing_is_static() -> None:
    found = _walked(_space(static=False), lambda c: 2.0)
    assert {c.mode for c in found} == {"dynamic"}


def test_a_model_that_cannot_be_quantized_ends_the_walk() -> None:
    assert len(_walked(_space(static=False), lambda c: None)) == 1


def test_layers_that_int8_makes_slower_stay_float() -> None:
    times = (LayerTime("b", 1.0, 2.0, 2.0), LayerTime("h", 1.0, 1.5, 1.5))
    asked = []

    def slower(candidate: Candidate) -> Sequence[LayerTime]:
        asked.append(candidate.name)
        return times

    found = _walked(_space(slower=slower), lambda c: 0.1)
    assert found[-1].name == "static, slower layers in float"
    assert found[-1].in_float == ("b", "h")
    assert found[-1].reason == "int8 makes 2 layers slower here: b 2.00x, h 1.50x"
    # Beside those that have to be float: a and b are enough.
    found = _walked(_space(slower=slower), lambda c: 0.1 if len(c.in_float) > 1 else 2.0)
    assert found[-1].name == "static, 2 of 8 layers in float, slower layers in float"
    assert found[-1].in_float == ("a", "b", "h")
    assert asked == ["static", "static, 2 of 8 layers in float"]
    _walked(_space(slower=slower), lambda c: 2.0)
    assert len(asked) == 2  # nothing is enough, so nothing is to be made faster


def _trial(candidate: Candidate, drop: float) -> Trial:
    return Trial(candidate.name, candidate.reason, candidate.in_float, 0.0, drop)


def test_what_comes_next_is_foreseen_as_far_as_it_is_known() -> None:
    known = Known(_space())
    seen: dict[str, Trial] = {}
    names = [c.name for c in foreseen(known.only, seen, 3)]
    assert names == ["static", "dynamic", "static, histogram"]
    # The ranking is not known, and which candidate it would be about neither.
    assert len(foreseen(known.only, seen, 100)) == 6
    for candidate in _walked(known.space, lambda c: 2.0)[:6]:
        seen[candidate.name] = _trial(candidate, 2.0)
    assert [len(c.in_float) for c in foreseen(known.only, seen, 2)] == [1, 2]
    assert [len(c.in_float) for c in foreseen(known.only, seen, 100)] == [1, 2, 4]


def test_what_is_foreseen_begins_with_what_is_asked_for() -> None:
    """Whatever the trials are: else the walk would wait for what nobody makes."""
    for enough in range(9):
        known, seen = Known(_space(four_bits=True, trained=True)), dict[str, Trial]()
        steps = walk(known.space)
        candidate: Candidate | None = next(steps)
        while candidate is not None:
            assert foreseen(known.only, seen, 2)[0] == candidate
            drop = 0.2 if len(candidate.in_float) >= enough else 1.0
            seen[candidate.name] = _trial(candidate, drop)
            candidate = next_of(steps, seen[candidate.name])


def test_what_fixed_ranges_can_do_is_looked_into_where_dynamic_ones_are_enough() -> None:
    """They may gain little: which is faster, is measured."""
    found = _walked(_space(), lambda c: 0.0 if c.mode == "dynamic" or len(c.in_float) else 2.0)
    assert found[-1].name == "static, 1 of 8 layers in float"
    # Unless there are none: a model that cannot be quantized so.
    found = _walked(_space(), lambda c: 0.0 if c.mode == "dynamic" else None)
    assert [c.mode for c in found] == ["static", "dynamic", *["static"] * 4]


def test_what_stays_float_is_tried_in_bfloat16() -> None:
    enough = _space(bfloat16=True)
    found = _walked(enough, lambda c: 0.1 if len(c.in_float) > 1 else 2.0)
    assert found[-1].name == "static, 2 of 8 layers in float, in bfloat16"
    assert [rule.precision for rule in found[-1].mapping.rules] == [torch.bfloat16] * 2
    # Layers that int8 makes slower are float too, and come last.
    slower = _space(bfloat16=True, slower=lambda candidate: (LayerTime("b", 1.0, 2.0, 2.0),))
    found = _walked(slower, lambda c: 0.1)
    assert found[-1].name == "static, slower layers in float, in bfloat16"
    assert found[-1].in_float == ("b",)
    assert not any(c.bfloat16 for c in _walked(_space(bfloat16=True), lambda c: 0.1))
    assert not any(c.bfloat16 for c in _walked(_space(bfloat16=True), lambda c: 2.0))
