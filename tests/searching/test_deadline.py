"""What is under way when the time is up, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.searching import deadline, recipe
from octavo.searching.deadline import Deadline, OutOfTime

TARGET = octavo.host_target()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deadline, "time", made)
    return made


def test_batches_and_models_stop(clock: Clock) -> None:
    ends, batches, net = Deadline.within(10), [1, 2], nn.Linear(2, 2)
    assert (ends.left, Deadline.within(None).left) == (10.0, float("inf"))
    assert list(ends.over(batches)) == list(Deadline().over(batches)) == batches
    with ends.watching(net):
        net(torch.zeros(1, 2))
        clock.now += 11
        with pytest.raises(OutOfTime):
            net(torch.zeros(1, 2))
    with pytest.raises(OutOfTime):
        list(ends.over(batches))
    net(torch.zeros(1, 2))  # the model is left as it was


@pytest.mark.sweep
def test_a_trial_that_takes_too_long_is_given_up(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training loop that never ends, and catches what it can."""
    monkeypatch.setattr(recipe, "layer_times", lambda q, tensors: ())
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 4)
    data = [(x, net(x).argmax(1))]
    steps = []

    def train(qat: octavo.QATModel) -> None:
        while True:
            try:
                qat(x)
                steps.append(len(steps))
                clock.now += 400
            except Exception:  # noqa: BLE001  (as a user's loop may)
                continue

    found = octavo.search(
        net,
        calibration=data,
        data=data,
        max_drop=-1.0,
        train=train,
        target=TARGET,
        time_budget=1000,
        checkpoint=tmp_path,
    )
    assert steps == [0, 1, 2]
    assert not found.complete
    assert len(found.trials) == 7  # all but the last
    assert "trained with rounding" not in (tmp_path / "trials.jsonl").read_text()
