"""Is one variant faster than another?"""

from __future__ import annotations

import random

import pytest
import torch

from octavo.runtimes.timing import Latency
from octavo.runtimes.tuning import Variant, gain
from octavo.runtimes.tuning.gain import Gain, side_by_side


def latency(*rounds: float) -> Latency:
    return Latency(tuple((seconds,) for seconds in rounds))


def test_the_median_ratio_of_the_rounds_and_how_sure_it_is() -> None:
    old, new = latency(2.0, 4.0, 2.0, 8.0), latency(1.0, 2.0, 1.0, 4.0)
    assert Gain.between(new, old) == Gain(2.0, 0.0)
    assert Gain.between(old, new) == Gain(0.5, 0.0)
    # Ratios 1, 2, 3: their median deviation is 1, which is 1.4826 standard deviations; the
    # median's own error is 1.2533 times that of a mean of three.
    uneven = Gain.between(latency(1.0, 1.0, 1.0), latency(1.0, 2.0, 3.0))
    assert uneven.speed == 2.0
    assert uneven.noise == pytest.approx(2 * 1.2533 * 1.4826 / 3**0.5)


def test_two_rounds_of_five_that_are_slower_are_noise() -> None:
    """Three that agree make the error of the median small, two standard errors of it 0.033."""
    old = latency(*[1.0] * 5)
    uneven = Gain.between(latency(1 / 0.9, 1 / 0.92, 1 / 1.06, 1 / 1.07, 1 / 1.08), old)
    assert uneven.speed == pytest.approx(1.06)
    assert uneven.noise == pytest.approx(0.14)
    assert not uneven.real
    assert Gain.between(latency(1 / 0.9, 1 / 1.05, 1 / 1.06, 1 / 1.07, 1 / 1.08), old).real


def test_two_that_take_as_long_are_rarely_told_apart() -> None:
    chance = random.Random(0)

    def measured() -> Gain:
        one, other = ([chance.lognormvariate(0, 0.1) for _ in range(5)] for _ in range(2))
        return Gain.between(latency(*one), latency(*other))

    assert sum(measured().real and measured().real for _ in range(1000)) < 15


@pytest.mark.parametrize(
    ("measured", "real"),
    [
        (Gain(1.005, 0.0), False),
        (Gain(1.02, 0.0), True),
        (Gain(1.02, 0.03), False),
        (Gain(1.2, 0.1), True),
        (Gain(0.9, 0.0), False),
    ],
)
def test_a_gain_is_more_than_the_noise(measured: Gain, real: bool) -> None:
    assert measured.real is real


def test_what_is_hopeless_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow, slower = Variant("torch"), Variant("torch", threads=1), Variant("torch", threads=2)
    first = iter([1.0, 1.3, 3.0])
    monkeypatch.setattr(gain, "_first_sight", lambda call: next(first))
    timed: list[set[Variant]] = []

    def interleave(calls: dict[Variant, object], **how: object) -> dict[Variant, Latency]:
        timed.append(set(calls))
        assert how["rest_s"] == gain.REST_S  # of torch alone, too
        seconds = {fast: 1.0, slow: 1.25, slower: 2.0}
        return {variant: latency(seconds[variant], seconds[variant]) for variant in calls}

    monkeypatch.setattr(gain, "interleave", interleave)
    runs = dict.fromkeys((fast, slow, slower), lambda x: (x,))
    found = side_by_side(runs, fast, (torch.zeros(1),))
    assert timed == [{fast, slow}]
    assert found == {fast: Gain(1.0), slow: Gain(0.8), slower: Gain(1 / 3)}
    first = iter([1.0, 1.3, 3.0])
    found = side_by_side(runs, fast, (torch.zeros(1),), all_of_them=True)
    assert timed[-1] == {fast, slow, slower}
    assert found[slower] == Gain(0.5)


def test_real_calls() -> None:
    one, other = Variant("torch"), Variant("torch", threads=1)
    found = side_by_side({one: lambda x: (x,), other: lambda x: (x + 1,)}, one, (torch.zeros(1),))
    assert found[one] == Gain(1.0)
    assert found[other].speed > 0
