"""`octavo.quantize` with an effort: steps, how they are judged, and what is told of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, InputError, PlanError
from octavo.flow.effort.draft import Draft, Judge, Samples
from octavo.flow.effort.recipes import RECIPES, Step, observing, rounding
from octavo.flow.effort.refining import refined
from octavo.numerics.observers import FixedRange, Histogram, Percentile
from octavo.quantization.weights import GPTQ, BiasCorrection


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10)).eval()


def batches(count: int = 8, size: int = 32) -> list[Tensor]:
    chance = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=chance).cumsum(3) for _ in range(count)]


def drafted(samples: Samples) -> Draft:
    graph = octavo.capture(network(), samples.fitted[0][0])
    return Draft.of(graph, octavo.plan(graph), (BiasCorrection(),), samples)


def sqnr(q: nn.Module, model: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        exact, found = (torch.cat([m(x) for x in data]) for m in (model, q))
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


@pytest.mark.parametrize(
    ("count", "size", "held"),
    [(8, 32, [1, 3, 5, 7]), (40, 128, [7, 15, 23, 31, 39]), (4, 1, [1, 3])],
)
def test_which_batches_are_held_back(count: int, size: int, held: list[int]) -> None:
    """128 samples, if that is not more than half; an eighth of many."""
    data = [[torch.full((size, 1), float(index))] for index in range(count)]
    samples = Samples.of(data)
    assert [int(batch[0][0]) for batch in samples.held] == held
    assert len(samples.fitted) + len(samples.held) == count
    assert len(samples.all.fitted) == count


def test_a_single_batch_is_split() -> None:
    samples = Samples.of([[torch.arange(10.0)[:, None], torch.arange(10.0)]])
    assert [len(t) for t in samples.fitted[0]] == [len(t) for t in samples.held[0]] == [5, 5]
    assert samples.held[0][1].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]


def test_a_batch_whose_tensors_differ_stays_whole() -> None:
    samples = Samples.of([[torch.zeros(4, 3), torch.zeros(1, 3)]])
    assert samples.held is samples.fitted
    assert len(samples.fitted[0][0]) == 4


def test_a_batch_of_fixed_size_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """A single image without a batch would lose a colour, and not half of the images."""
    image = batches(1, 1)[0][0]
    q = octavo.quantize(network()[:3], calibration=[image], effort="balanced", scope="model")
    assert q.provenance["calibration_batches"] == 1
    assert "the data that methods saw" in capsys.readouterr().err


def test_a_step_is_kept_only_where_held_back_data_say_so() -> None:
    samples = Samples.of([[x] for x in batches()])
    first = drafted(samples)
    before = Judge(first.graph, samples)(first)

    def worse(draft: Draft, seen: Samples) -> Draft:
        return draft.changed(seen, plan=observing(draft.plan, Percentile(percentile=80.0)))

    def better(draft: Draft, seen: Samples) -> Draft:
        return draft.changed(seen, weights=(GPTQ(), *draft.weights))

    def broken(draft: Draft, seen: Samples) -> Draft:
        raise PlanError("no form for it\nand more")

    last, taken = refined(
        first, samples, (Step("worse", worse), Step("better", better), Step("broken", broken))
    )
    assert [step.kept for step in taken] == [False, True, False]
    assert taken[0].before_db == taken[1].before_db == pytest.approx(before)
    assert taken[0].after_db < before < taken[1].after_db == taken[2].before_db
    assert taken[2].why == "no form for it"
    assert [method.name for method in last.weights] == ["gptq", "bias_correction"]
    assert last.calibrated.batches == 8  # the kept ones see all of the data in the end
    assert last.plan == first.plan


def test_the_judge_is_right() -> None:
    samples = Samples.of([[x] for x in batches()])
    draft, model = drafted(samples), network()
    q = octavo.convert(
        draft.graph,
        draft.plan,
        draft.calibrated.qparams,
        weights=draft.weights,
        statistics=draft.calibrated.statistics,
    )
    right = sqnr(q.lower("reference"), model, [batch[0] for batch in samples.held])
    assert Judge(draft.graph, samples)(draft) == pytest.approx(right, abs=0.01)


def test_scores_that_a_mask_hides_do_not_count() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.arange(10) < 3
            return self.net(x).masked_fill(hidden, float("-inf"))

    q = octavo.quantize(Masked().eval(), calibration=batches(), effort="balanced", progress=False)
    assert all(20 < step["after_db"] < 60 for step in q.provenance["steps"])


def test_a_model_without_floats_cannot_be_judged() -> None:
    model = nn.Sequential(network(), Best()).eval()
    with pytest.raises(InputError, match="this model returns none: leave effort= out"):
        octavo.quantize(model, calibration=batches(), effort="balanced", progress=False)


class Best(nn.Module):
    """The index of the largest."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_what_is_rounded_goes_behind_scales_and_before_biases() -> None:
    weights = (octavo.Clip(), BiasCorrection())
    assert rounding(weights, GPTQ()) == (octavo.Clip(), GPTQ(), BiasCorrection())
    assert rounding((), GPTQ()) == (GPTQ(),)


def test_fixed_ranges_keep_their_observer() -> None:
    samples = Samples.of([[x] for x in batches()])
    plan = drafted(samples).plan
    name, tensor = next((n, t) for n, t in plan.quantized.items() if t.kind == "activation")
    assert tensor.spec is not None
    fixed = replace(tensor, spec=replace(tensor.spec, observer=FixedRange(0.0, 1.0)))
    changed = observing(replace(plan, tensors={**plan.tensors, name: fixed}), Histogram())
    assert changed.tensors[name] == fixed
    kinds = {type(t.spec.observer) for t in changed.quantized.values() if t.spec is not None}
    assert kinds == {FixedRange, Histogram, octavo.MinMax}


@pytest.mark.parametrize("effort", ["balanced", pytest.param("best", marks=pytest.mark.sweep)])
def test_quantize(effort: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = network(), batches()
    fresh = batches(16)[8:]
    q = octavo.quantize(model, calibration=data, effort=effort)
    plain = octavo.quantize(model, calibration=data)
    steps = q.provenance["steps"]
    assert [step["step"] for step in steps] == [step.name for step in RECIPES[effort]]
    assert any(step["kept"] for step in steps)
    assert sqnr(q.lower("reference"), model, fresh) > sqnr(plain.lower("reference"), model, fresh)
    told = capsys.readouterr().err
    assert "held-back data" in told
    assert all(step["step"] in told for step in steps)
    assert "effort" not in plain.provenance
    assert f"effort {effort}" in str(octavo.summary(q))
    assert "before_db" not in str(octavo.summary(q))
    octavo.quantize(model, calibration=data, effort=effort, progress=False)
    assert not capsys.readouterr().err


def test_what_wide_layers_read_is_not_measured() -> None:
    """Of 100,000 inputs it would be 40 GB."""
    model = nn.Sequential(nn.Linear(4, 100_000), nn.ReLU(), nn.Linear(100_000, 2)).eval()
    q = octavo.quantize(
        model, calibration=torch.randn(16, 4).split(8), effort="balanced", progress=False
    )
    assert len(q.provenance["steps"]) == 2


def test_a_method_that_cannot_be_had_is_passed_over() -> None:
    large = [batch * 1e19 for batch in batches()]
    q = octavo.quantize(network(), calibration=large, effort="balanced", progress=False)
    step = q.provenance["steps"][-1]
    assert not step["kept"]
    assert "squares" in step["why"]


def test_data_may_fill_one_tensor_again_and_again() -> None:
    data = batches()
    memory = torch.empty_like(data[0])
    of_one, of_many = (
        octavo.quantize(network(), calibration=given, effort="balanced", progress=False)
        for given in ((memory.copy_(batch) for batch in data), data)
    )
    assert torch.equal(of_one(data[0]), of_many(data[0]))


def test_data_may_be_read_once_only() -> None:
    q = octavo.quantize(network(), calibration=iter(batches()), effort="balanced", progress=False)
    assert q.provenance["calibration_batches"] == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"effort": "most"}, "give one of 'fast', 'balanced', 'best'"),
        ({"effort": "best", "mode": "dynamic"}, "mode='dynamic'"),
        ({"effort": "best", "scope": "regions"}, "scope='regions'"),
        ({"effort": "best", "distributed": True}, "distributed=True"),
    ],
)
def test_what_it_is_not_for(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        octavo.quantize(network(), calibration=batches(), progress=False, **settings)  # type: ignore[call-overload]


def test_bad_data_are_told_by_their_number() -> None:
    data = batches()
    data[2] = torch.full_like(data[2], torch.nan)
    with pytest.raises(CalibrationError, match=r"batch 2.*NaN"):
        octavo.quantize(network(), calibration=data, effort="best", progress=False)
    with pytest.raises(CalibrationError, match="no calibration batch"):
        octavo.quantize(
            network(), batches()[0], calibration=[], effort="best", progress=False, mode="static"
        )
