"""When a model observes, rounds and freezes; how fast it learns; how a training is resumed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo.errors import TrainingError
from octavo.qat import Phase, QATModel, Schedule


def test_phases_at_their_borders() -> None:
    """Each share of eight steps is a whole number of them; a phase holds from its step on."""
    schedule = Schedule(8, fake_quantize_from=0.25, observe_until=0.5, freeze_batch_norms_from=0.75)
    rounding = [schedule.phase(step).fake_quantize for step in range(8)]
    observing = [schedule.phase(step).observe for step in range(8)]
    frozen = [schedule.phase(step).freeze_batch_norms for step in range(8)]
    assert rounding == [False] * 2 + [True] * 6
    assert observing == [True] * 4 + [False] * 4
    assert frozen == [False] * 6 + [True] * 2


def test_the_usual_phases() -> None:
    schedule = Schedule(steps=100)
    assert schedule.phase(0) == Phase(fake_quantize=True, observe=True, freeze_batch_norms=False)
    assert schedule.phase(49).observe
    assert not schedule.phase(50).observe
    assert not schedule.phase(74).freeze_batch_norms
    assert schedule.phase(75).freeze_batch_norms


@given(
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_each_phase_starts_or_ends_once(
    steps: int, rounding: float, observing: float, freezing: float
) -> None:
    """And past its length a schedule stays as it ended."""
    if observing * steps < 1:
        rounding = 0.0
    schedule = Schedule(steps, rounding, observing, freezing)
    phases = [schedule.phase(step) for step in range(steps + 2)]
    assert phases[-1] == Phase(fake_quantize=True, observe=False, freeze_batch_norms=True)
    for before, after in pairwise(phases):
        assert before.fake_quantize <= after.fake_quantize
        assert before.observe >= after.observe
        assert before.freeze_batch_norms <= after.freeze_batch_norms
    assert phases[0].observe or phases[0].fake_quantize


@pytest.mark.parametrize(("original", "steps"), [(1000, 100), (1004, 100), (26, 3), (1, 1)])
def test_a_tenth_of_the_original_training(original: int, steps: int) -> None:
    schedule = Schedule.tenth_of(original, observe_until=1.0)
    assert schedule == Schedule(steps, observe_until=1.0)


def test_the_learning_rate_is_half_a_cosine_from_a_hundredth() -> None:
    schedule = Schedule(steps=12)
    rates = []
    for _ in range(14):
        rates.append(schedule.learning_rate(0.5))
        schedule.step()
    assert rates[0] == pytest.approx(0.005)
    assert rates[4] == pytest.approx(0.005 * 0.75)  # half of 1 + cos(60 degrees)
    assert rates[6] == pytest.approx(0.0025)
    assert rates[12] == pytest.approx(0.0, abs=1e-18)
    assert rates[13] == pytest.approx(0.0, abs=1e-18)
    assert all(a > b for a, b in pairwise(rates[:13]))


def test_a_training_is_resumed_where_it_was() -> None:
    schedule = Schedule(steps=10)
    for _ in range(7):
        schedule.step()
    other = Schedule(steps=10)
    other.load_state_dict(schedule.state_dict())
    assert other == schedule
    assert other.done == 7
    assert other.learning_rate(1.0) == schedule.learning_rate(1.0) > 0


def test_a_checkpoint_of_another_length_is_refused() -> None:
    schedule = Schedule(steps=10)
    with pytest.raises(TrainingError, match=r"20 steps, this one has 10: .* steps=20"):
        schedule.load_state_dict(Schedule(steps=20, done=5).state_dict())
    assert schedule.done == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"fake_quantize_from": 1.5}, r"fake_quantize_from is 1\.5; it is a share"),
        ({"observe_until": -0.1}, r"observe_until is -0\.1"),
        ({"freeze_batch_norms_from": math.nan}, "freeze_batch_norms_from is nan"),
        ({"fake_quantize_from": 0.5, "observe_until": 0.0}, "ranges are not observed before"),
        ({"fake_quantize_from": 0.5, "observe_until": 0.05}, "ranges are not observed before"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Schedule(**({"steps": 10} | settings))  # type: ignore[arg-type]


def _prepared() -> tuple[QATModel, torch.Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    x = torch.randn(4, 2, 5, 5)
    return octavo.prepare_qat(net, x, calibration=[x]), x


def _phase_of(qat: QATModel, x: torch.Tensor) -> Phase:
    """What a training step shows of it."""
    range_before = qat.get_buffer("fake_quantizers.input.high").clone()
    mean_before = qat.get_buffer("1.running_mean").clone()
    rounded: list[torch.Tensor] = []
    hook = qat.get_submodule("fake_quantizers.input").register_forward_hook(
        lambda module, given, made: rounded.append(made)
    )
    qat(x)
    hook.remove()
    return Phase(
        fake_quantize=not torch.equal(rounded[0], x),
        observe=not torch.equal(qat.get_buffer("fake_quantizers.input.high"), range_before),
        freeze_batch_norms=torch.equal(qat.get_buffer("1.running_mean"), mean_before),
    )


def test_a_model_is_put_into_each_phase() -> None:
    qat, x = _prepared()
    schedule = Schedule(4, fake_quantize_from=0.25, observe_until=0.5, freeze_batch_norms_from=0.75)
    for step in range(4):
        told = schedule.start(qat)
        assert told == schedule.phase(step)
        assert _phase_of(qat, (2 + step) * x) == told
        schedule.step()
    schedule.done = 0  # and back again
    schedule.start(qat)
    assert _phase_of(qat, 9 * x) == schedule.phase(0)
