"""The modules that round: where their ranges come from, and what never enters them."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo import FixedRange, MinMax, MovingAverageMinMax, QSpec, Scheme
from octavo.errors import CalibrationError, PlanError
from octavo.numerics.affine import QParams, fake_quantize
from octavo.numerics.observers import Bounds, Observer
from octavo.qat import LearnedFakeQuantize, ObservedFakeQuantize, WeightFakeQuantize
from octavo.qat.fake_quantize import learned_start

FIRST, SECOND = torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([[-3.0], [1.0]])


def observed(observer: Observer, dtype: str = "uint8") -> ObservedFakeQuantize:
    return ObservedFakeQuantize("some.tensor", QSpec(Scheme(dtype), observer))


def bounds_of(module: ObservedFakeQuantize) -> list[float]:
    return [module.low.item(), module.high.item()]


def test_min_max_is_the_range_of_all_that_was_seen() -> None:
    module = observed(MinMax())
    module(FIRST)
    assert bounds_of(module) == [-1.0, 3.0]
    module(SECOND)
    assert bounds_of(module) == [-3.0, 3.0]
    qparams = module.qparams()
    assert qparams.scale.item() == pytest.approx(6 / 255, rel=1e-6)
    assert qparams.zero_point.item() == 128  # 127.5 to even


def test_a_moving_average_goes_part_of_the_way() -> None:
    module = observed(MovingAverageMinMax(0.25))
    module(FIRST)
    assert bounds_of(module) == [-1.0, 3.0]  # all the way at first
    module(SECOND)
    assert bounds_of(module) == [-1.0 + 0.25 * (-3.0 + 1.0), 3.0 + 0.25 * (1.0 - 3.0)]
    module(torch.tensor([0.5, 4.5]))
    assert bounds_of(module) == [-1.0, 3.0]  # -1.5 + 0.25 * 2 and 2.5 + 0.25 * 2
    assert module.qparams().scale.item() == pytest.approx(4 / 255, rel=1e-6)
    assert module.qparams().zero_point.item() == 64  # 63.75


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax(0.3)])
def test_training_sees_what_calibration_sees(observer: Observer) -> None:
    module, state = observed(observer), None
    for _ in range(5):
        x = torch.randn(4, 6)
        module(x)
        state = observer.update(state, x, None)
        expected = observer.bounds(state, module.scheme)
        torch.testing.assert_close(module.low, expected.low)
        torch.testing.assert_close(module.high, expected.high)


def test_a_first_range_from_calibration_is_gone_on_from() -> None:
    start = Bounds(torch.tensor(-2.0), torch.tensor(2.0))
    spec = QSpec(Scheme("uint8"), MovingAverageMinMax(0.5))
    module = ObservedFakeQuantize("x", spec, start)
    assert module.qparams().scale.item() == pytest.approx(4 / 255, rel=1e-6)
    module(torch.tensor([0.0, 4.0]))
    assert bounds_of(module) == [-1.0, 3.0]
    assert start.low.item() == -2.0


def test_the_output_is_rounded_by_the_range_of_this_very_batch() -> None:
    module = observed(MinMax())
    y = module(FIRST)
    torch.testing.assert_close(y, fake_quantize(FIRST, module.qparams()))
    assert not torch.equal(y, FIRST)
    module.enabled = False
    assert torch.equal(module(SECOND), SECOND)
    assert bounds_of(module) == [-3.0, 3.0]


def test_a_range_stays_without_observing_and_in_evaluation() -> None:
    module = observed(MinMax())
    module(FIRST)
    module.observing = False
    module(10 * FIRST)
    module.observing = True
    module.eval()
    y = module(10 * FIRST)
    assert bounds_of(module) == [-1.0, 3.0]
    assert y.tolist() == pytest.approx([-1.0, 3.0, 3.0], abs=2 / 255)  # clipped
    module.train()
    module(10 * FIRST)
    assert bounds_of(module) == [-10.0, 30.0]


def test_a_fixed_range_never_moves() -> None:
    module = observed(FixedRange(0.0, 255 / 256), "int8")
    for x in (10 * FIRST, torch.tensor([math.nan]), SECOND):
        module(x)
        assert bounds_of(module) == [0.0, 255 / 256]
    assert module.qparams().scale.item() == 1 / 256
    assert module.qparams().zero_point.item() == -128


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax(0.5), FixedRange(-1.0, 3.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_becomes_part_of_a_range(observer: Observer, bad: float) -> None:
    module = observed(observer)
    module(FIRST)
    module(torch.tensor([-5.0, bad, 9.0]))
    assert bounds_of(module) == [-1.0, 3.0]
    assert bool(module.has_nan) == math.isnan(bad)
    assert module.qparams().scale.item() == pytest.approx(4 / 255, rel=1e-6)


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax(0.1)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_range_starts_with_the_first_numbers(observer: Observer, bad: float) -> None:
    module = observed(observer)
    module(torch.tensor([1.0, bad]))
    module(FIRST)
    assert bounds_of(module) == [-1.0, 3.0]


def test_a_range_that_is_not_known_names_the_tensor_and_the_way_out() -> None:
    message = r"tensor 'some\.tensor' is not known: train for a step, or pass calibration="
    with pytest.raises(CalibrationError, match=message):
        observed(MinMax()).qparams()
    still = observed(MinMax())
    still.observing = False
    with pytest.raises(CalibrationError, match=message):
        still(FIRST)


def test_before_anything_was_seen_evaluation_rounds_nothing() -> None:
    module = observed(MinMax()).eval()
    assert not module.rounds
    assert torch.equal(module(FIRST), FIRST)
    assert not module.seen
    module.train()(FIRST)
    assert module.eval().rounds
    assert not torch.equal(module(FIRST), FIRST)


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax(0.5), FixedRange(-1.0, 3.0)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint4"])
def test_evaluation_is_the_oracle_to_the_bit(observer: Observer, dtype: str) -> None:
    """Halves too, where training may round the other way, and with an odd zero point."""
    module = observed(observer, dtype)
    module(torch.tensor([-1.0, 3.0]))
    qparams = module.eval().qparams()
    halves = (torch.arange(-300, 300) + 0.5) * qparams.scale
    x = torch.cat([halves, torch.randn(1000), torch.nextafter(halves, torch.tensor(9.0))])
    x.requires_grad_()
    y = module(x)
    assert torch.equal(y.detach(), fake_quantize(x.detach(), qparams))
    with torch.no_grad():
        assert torch.equal(module(x), y)
    y.sum().backward()
    ends = fake_quantize(torch.tensor([-9.0, 9.0]), qparams)
    inside = (x > ends[0] - 0.49 * qparams.scale) & (x < ends[1] + 0.49 * qparams.scale)
    outside = (x < ends[0] - 0.51 * qparams.scale) | (x > ends[1] + 0.51 * qparams.scale)
    assert x.grad is not None
    assert bool((x.grad[inside] == 1).all())
    assert bool((x.grad[outside] == 0).all())


def test_a_mean_over_steps_is_the_mean_of_the_ranges_that_were_known() -> None:
    """As an average of the buffers (EMA) makes it that began before anything was seen.

    Half, a quarter and an eighth of -2..6, -2..6 and -1..3, and nothing for what was before.
    """
    module, average = observed(MinMax()), observed(MinMax())
    for x in (FIRST, 2 * FIRST, FIRST):
        module(x)
        for name in ("low", "high", "share"):
            average.get_buffer(name).lerp_(module.get_buffer(name), 0.5)
    assert average.seen
    assert average.share.item() == 0.875
    low, high = -(0.125 * 1 + 0.75 * 2) / 0.875, (0.125 * 3 + 0.75 * 6) / 0.875
    assert average.qparams().scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
    average(torch.tensor([-9.0, 1.0]))  # and goes on from there
    assert bounds_of(average) == [-9.0, pytest.approx(high)]
    assert average.share.item() == 1.0


def test_an_observer_that_cannot_follow_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'percentile' of tensor 'some\.tensor'.*calibration="):
        observed(octavo.Percentile())


@pytest.mark.parametrize("observer", [MinMax(), MovingAverageMinMax(0.5)])
def test_a_checkpoint_keeps_what_was_seen(observer: Observer) -> None:
    module, other = observed(observer), observed(observer)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)  # nothing seen yet
    file.seek(0)
    other(SECOND)
    other.load_state_dict(torch.load(file, weights_only=True))
    with pytest.raises(CalibrationError):
        other.qparams()
    module(FIRST)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.qparams().scale, module.qparams().scale)
    module(SECOND), other(SECOND)
    assert bounds_of(other) == bounds_of(module)
    assert set(module.state_dict()) == {"low", "high", "share"}


def weights(**scheme: object) -> WeightFakeQuantize:
    settings = {"symmetric": True, "narrow_range": True} | scheme
    return WeightFakeQuantize("w", QSpec(Scheme("int8", **settings), MinMax()))  # type: ignore[arg-type]


def test_the_range_of_a_weight_follows_it() -> None:
    module = weights(channel_axis=0)
    weight = torch.tensor([[-1.0, 0.5], [0.25, 0.0]])
    for factor in (1.0, 3.0, 0.1):  # down again too
        qparams = module.qparams_of(factor * weight)
        torch.testing.assert_close(qparams.scale, factor * torch.tensor([1.0, 0.25]) / 127)
        assert torch.equal(qparams.zero_point, torch.zeros(2, dtype=torch.int32))
    torch.testing.assert_close(module(weight), weight, rtol=0, atol=1 / 254)
    assert not list(module.state_dict())
    assert not bool(module.has_nan)


def test_each_group_of_a_weight_has_a_range() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [4.0, 1.0, -8.0, 2.0]])
    module = weights(group_size=2)
    qparams = module.qparams_of(weight)
    torch.testing.assert_close(qparams.scale, torch.tensor([[2.0, 0.5], [4.0, 8.0]]) / 127)
    assert module(weight).shape == weight.shape


def test_the_gradient_of_a_weight_passes_through() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    upstream = torch.randn(3, 4)
    weights(channel_axis=0)(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_noted(bad: float) -> None:
    module = weights(channel_axis=0)
    module(torch.tensor([[1.0, 2.0], [bad, 0.0]]))
    assert bool(module.has_nan)


def learned(scale: float, dtype: str = "int4") -> LearnedFakeQuantize:
    zero = torch.tensor(0, dtype=torch.int32)
    start = QParams(torch.tensor(scale), zero, Scheme(dtype, symmetric=True))
    return LearnedFakeQuantize("w", start)


def test_a_learned_scale_is_a_parameter_of_its_own() -> None:
    start = QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), Scheme("int4"))
    module = LearnedFakeQuantize("w", start)
    assert isinstance(module.scale, nn.Parameter)
    assert [name for name, _ in module.named_parameters()] == ["scale"]
    with torch.no_grad():
        module.scale.mul_(2)
    assert start.scale.item() == 0.5
    assert module.qparams().scale.item() == 1.0


def test_how_fast_a_scale_learns() -> None:
    """Of four values above the range of int4 each derivative is 7; times 1 / sqrt(4 * 7)."""
    module = learned(0.1)
    module(torch.full((2, 2), 9.0)).sum().backward()
    assert module.scale.grad is not None
    assert module.scale.grad.item() == pytest.approx(4 * 7 / math.sqrt(4 * 7), rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, -1e30])
def test_a_scale_in_use_is_positive(scale: float) -> None:
    module = learned(1.0)
    with torch.no_grad():
        module.scale.fill_(scale)
    assert 0 < module.qparams().scale.item() < 1e-15
    y = module(torch.tensor([1.0, -2.0, 0.0]))
    assert bool(torch.isfinite(y).all())
    assert y[2].item() == 0.0


def test_what_does_not_round_still_notes_what_is_no_number() -> None:
    module = learned(0.1)
    x = torch.randn(5)
    module.enabled = False
    assert torch.equal(module(x), x)
    module(torch.tensor([1.0, math.nan]))
    assert bool(module.has_nan)


@pytest.mark.parametrize(
    ("scheme", "means"),
    [
        ({}, torch.tensor(2.0)),
        ({"channel_axis": 0}, torch.tensor([1.0, 3.0])),
        ({"channel_axis": 1}, torch.tensor([1.5, 3.0, 1.0, 2.5])),
        ({"group_size": 2}, torch.tensor([[1.5, 0.5], [3.0, 3.0]])),
    ],
)
@pytest.mark.parametrize(("dtype", "qmax"), [("int8", 127), ("int4", 7), ("int2", 1)])
def test_where_a_scale_starts(scheme: dict[str, int], means: Tensor, dtype: str, qmax: int) -> None:
    """``2 mean|w| / sqrt(qmax)`` of what shares the scale."""
    weight = torch.tensor([[1.0, -2.0, 0.0, 1.0], [-2.0, 4.0, 2.0, -4.0]])
    start = learned_start(weight, Scheme(dtype, symmetric=True, **scheme))  # type: ignore[arg-type]
    torch.testing.assert_close(start.scale, 2 * means / math.sqrt(qmax))
    assert torch.equal(start.zero_point, torch.zeros(means.shape, dtype=torch.int32))


def test_a_weight_of_zeros_starts_with_a_positive_scale() -> None:
    assert learned_start(torch.zeros(2, 2), Scheme("int8", symmetric=True)).scale.item() > 0
