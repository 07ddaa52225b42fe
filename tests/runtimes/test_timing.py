from __future__ import annotations

import gc

import pytest
import torch

from octavo.errors import InputError
from octavo.runtimes import timing
from octavo.runtimes.timing import Latency, interleave, thread_count


def test_the_numbers_of_known_times() -> None:
    ours = Latency(tuple((float(i), float(i)) for i in range(1, 51)))
    assert ours.median_s == 25.5
    assert ours.p95_s == 48.0  # the 95th of 100 sorted times 1, 1, 2, 2, ... 50, 50
    theirs = Latency(tuple((2.0 * i,) for i in range(1, 51)))
    assert ours.speedup_over(theirs) == 2.0
    assert theirs.speedup_over(ours) == 0.5


def test_speed_is_compared_within_a_round() -> None:
    """A machine that gets ten times slower half way changes no ratio."""
    fast = Latency(((1.0,), (1.0,), (10.0,), (10.0,)))
    slow = Latency(((3.0,), (3.0,), (30.0,), (30.0,)))
    assert fast.speedup_over(slow) == 3.0


def test_contenders_take_turns_in_a_rotating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_REPEATS", 1)
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = interleave(calls, rounds=3)
    assert "".join(order[-9:]) == "abc" + "bca" + "cab"
    assert order[:-9] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3  # the warm-up
    assert {name: len(latency.rounds) for name, latency in times.items()} == dict.fromkeys("abc", 3)


def test_short_calls_are_repeated_within_a_turn() -> None:
    times = interleave({"short": lambda: None}, rounds=2)
    assert [len(turn) for turn in times["short"].rounds] == [timing.MAX_REPEATS] * 2


def test_without_a_number_of_rounds_the_budget_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_ROUNDS", 20)
    assert len(interleave({"a": lambda: None}, budget_s=0.0)["a"].rounds) == timing.MIN_ROUNDS
    assert len(interleave({"a": lambda: None}, budget_s=60.0)["a"].rounds) == timing.MAX_ROUNDS


def test_the_garbage_collector_rests_and_comes_back() -> None:
    seen: list[bool] = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, rounds=1)
    assert not any(seen[timing.WARM_UP_CALLS :])
    assert gc.isenabled()


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with thread_count(1) as inside:
        assert inside == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with thread_count(None) as inside:
        assert inside == before


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="rounds=0"):
        interleave({}, rounds=0)
    with pytest.raises(InputError, match="threads=0"), thread_count(0):
        pass
