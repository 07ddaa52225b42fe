"""`octavo.quantize` with an effort: steps, how they are judged, and what is told of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, InputError, PlanError
from octavo.flow.effort.draft import Draft, Judge, Observed, Samples
from octavo.flow.effort.recipes import (
    Step,
    observed_by,
    observing,
    rounded_by,
    rounding,
    steps_of,
)
from octavo.flow.effort.refining import refined
from octavo.numerics.observers import FixedRange, Histogram, Percentile
from octavo.numerics.sqnr import sqnr_db
from octavo.quantization.calibrate import Calibration
from octavo.quantization.weights import GPTQ, BiasCorrection, Layer, Rounded
from octavo.quantization.weights.bias_correction import Average


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


def of_both_halves(draft: Draft, samples: Samples) -> float:
    """In dB: half of the data judged by what the other half gave, and the other way round."""
    halves = (samples, Samples(samples.held, samples.fitted))
    noise = [Judge(draft.graph, half).noise(draft.changed(half)) for half in halves]
    return sqnr_db(1.0, sum(noise) / 2)


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
    before = of_both_halves(first, samples)

    def worse(draft: Draft, seen: Samples) -> Draft:
        return draft.changed(seen, plan=observing(draft.plan, Percentile(percentile=80.0)))

    def better(draft: Draft, seen: Samples) -> Draft:
        return draft.changed(seen, weights=(GPTQ(), *draft.weights))

    def broken(draft: Draft, seen: Samples) -> Draft:
        raise PlanError("no form for it\nand more")

    last, taken = refined(
        first, samples.folds, (Step("worse", worse), Step("better", better), Step("broken", broken))
    )
    assert [step.kept for step in taken] == [False, True, False]
    assert taken[0].before_db == taken[1].before_db == pytest.approx(before)
    assert taken[0].after_db < before < taken[1].after_db == taken[2].before_db
    assert taken[2].why == "no form for it"
    assert taken[2].after_db == taken[2].before_db  # a number, as JSON has it
    assert [method.name for method in last.weights] == ["gptq", "bias_correction"]
    assert last.calibrated.batches == 8  # the kept ones see all of the data in the end
    assert last.plan == first.plan


def test_an_interruption_keeps_what_is_done() -> None:
    samples = Samples.of([[x] for x in batches()])

    def interrupted(draft: Draft, seen: Samples) -> Draft:
        raise KeyboardInterrupt

    steps = [rounded_by(GPTQ()), Step("long", interrupted), observed_by(Histogram())]
    last, taken = refined(drafted(samples), samples.folds, steps)
    assert [(step.kept, step.why) for step in taken] == [(True, ""), (False, "interrupted")]
    assert [method.name for method in last.weights] == ["gptq", "bias_correction"]


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


def test_each_of_few_samples_is_judged_by_what_has_not_seen_it() -> None:
    few = Samples.of([[x] for x in batches()])
    assert few.folds == [few, Samples(few.held, few.fitted)]
    first = drafted(few)
    _, taken = refined(first, few.folds, (observed_by(Histogram()),))
    assert taken[0].before_db == pytest.approx(of_both_halves(first, few))
    assert taken[0].before_db != pytest.approx(Judge(first.graph, few)(first), abs=1e-3)
    many = Samples.of([[torch.zeros(128, 1)] for _ in range(40)])
    assert many.folds == [many]
    whole = Samples.of([[torch.zeros(4, 3), torch.zeros(1, 3)]])
    assert whole.folds == [whole]


def test_ranges_get_a_margin() -> None:
    """But for ranges that are fixed, and those of weights."""
    samples = Samples.of([[x] for x in batches()])
    plain = drafted(samples)
    wide = observed_by(octavo.MinMax(), 1.25).change(plain, samples)
    assert plain.calibrated.bounds == wide.calibrated.bounds
    for name, tensor in plain.plan.quantized.items():
        before, after = (d.calibrated.qparams[name].scale for d in (plain, wide))
        times = 1.0 if tensor.kind == "weight" else 1.25
        torch.testing.assert_close(after, before * times)
    assert observed_by(Histogram(), 1.1).name == "observer histogram, ranges x 1.1"
    name = next(n for n, t in plain.plan.quantized.items() if t.kind == "activation")
    spec = plain.plan.tensors[name].spec
    assert spec is not None
    fixed = replace(spec, observer=FixedRange(0.0, 1.0))
    tensors = {**plain.plan.tensors, name: replace(plain.plan.tensors[name], spec=fixed)}
    kept = plain.changed(samples, plan=replace(plain.plan, tensors=tensors), margin=2.0)
    assert kept.calibrated.qparams[name].scale.item() == pytest.approx(1 / 255)


def test_margins_of_one_observer_take_one_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of([[x] for x in batches()])
    first, seen = drafted(samples), list[int]()
    observe = Calibration.observe

    def counted(self: Calibration, tensors: list[Tensor]) -> None:
        seen.append(len(tensors[0]))
        observe(self, tensors)

    monkeypatch.setattr(Calibration, "observe", counted)
    wide, plain = (observed_by(Histogram(), times).change(first, samples) for times in (1.1, 1.0))
    assert len(seen) == len(samples.fitted)
    assert wide.calibrated.bounds == plain.calibrated.bounds
    assert wide.calibrated.qparams != plain.calibrated.qparams
    observed_by(octavo.MSE()).change(first, samples)
    assert len(seen) == 2 * len(samples.fitted)
    observed_by(octavo.MinMax()).change(first, samples)  # as the first draft
    assert len(seen) == 2 * len(samples.fitted)


@pytest.mark.parametrize(("size", "seen", "rounded"), [(32, 16, 9), (256, 15, 6)])
def test_nothing_is_measured_or_rounded_twice(
    size: int, seen: int, rounded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold is seen once for each kind of observers; of the three layers the weights are
    rounded for each fold and for all of the data, which the model is made of.
    """
    observed, layers = list[int](), list[str]()
    observe, make = Calibration.observe, GPTQ.round

    def observing(self: Calibration, tensors: list[Tensor]) -> None:
        observed.append(len(tensors[0]))
        observe(self, tensors)

    def making(self: GPTQ, layer: Layer, now: Rounded, seen: Average) -> Rounded:
        layers.append(layer.name)
        return make(self, layer, now, seen)

    monkeypatch.setattr(Calibration, "observe", observing)
    monkeypatch.setattr(GPTQ, "round", making)
    q = octavo.quantize(network(), calibration=batches(8, size), effort="balanced", progress=False)
    assert q.provenance["steps"][-1]["kept"]
    assert q.provenance["calibration_batches"] == 8
    assert (len(observed), len(layers)) == (seen, rounded)


def test_an_output_that_is_not_finite_is_all_noise() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).abs().log()

    torch.manual_seed(0)
    samples = Samples.of([[torch.randn(64, 4)] for _ in range(4)])
    graph = octavo.capture(Logarithm().eval(), samples.fitted[0][0])
    draft = Draft.of(graph, octavo.plan(graph), (), samples)
    constants = {n: torch.zeros_like(t) for n, t in graph.constants.items()}
    spoiled = replace(draft, graph=replace(graph, constants=constants))
    judge = Judge(graph, samples)
    assert judge(draft) > 10
    assert (judge.noise(spoiled), judge(spoiled)) == (math.inf, -math.inf)


def test_outputs_count_alike_however_large_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.net(x)
            return 1e3 * y[:, :5], y[:, 5:], torch.zeros_like(y)

    samples = Samples.of([[x] for x in batches()])
    model = Two().eval()
    graph = octavo.capture(model, samples.fitted[0][0])
    draft = Draft.of(graph, octavo.plan(graph), (), samples)
    found = octavo.convert(draft.graph, draft.plan, draft.calibrated.qparams).lower("reference")
    shares = []
    for at in (0, 1):
        with torch.no_grad():
            exact, other = (torch.cat([m(x)[at] for (x,) in samples.held]) for m in (model, found))
        shares.append(float((exact - other).square().sum() / exact.square().sum()))
    assert Judge(graph, samples).noise(draft) == pytest.approx(sum(shares) / 2, rel=1e-3)


def test_what_gets_worse_on_all_data_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of([[x] for x in batches()])
    first = drafted(samples)
    assert refined(first, samples.folds, ())[0].calibrated.batches == 8
    honest = Draft.joined

    def spoiled(self: Draft, other: Observed) -> Draft:
        return replace(honest(self, other), margin=9.0)

    monkeypatch.setattr(Draft, "joined", spoiled)
    assert refined(first, samples.folds, ())[0].calibrated.batches == 4


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
    assert [step["step"] for step in steps] == [step.name for step in steps_of(effort, q.plan)]
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
    assert len(q.provenance["steps"]) == len(steps_of("balanced", q.plan))


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
        ({"effort": "most"}, "effort is 'most'; give one of 'fast', 'balanced', 'best'"),
        ({"effort": 2}, "effort is 2"),
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


def few_bits(mode: str) -> octavo.QConfig:
    by_mode = {
        "static": octavo.static_qconfig(weight_bits=4),
        "dynamic": replace(
            octavo.dynamic_qconfig(), weight=octavo.static_qconfig(weight_bits=4).weight
        ),
        "weight_only": octavo.weight_only_qconfig(4),
    }
    return by_mode[mode]


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_few_bits_have_steps_of_their_own(mode: str) -> None:
    """And where no range of an activation comes from data, no observer is tried."""
    model, data = network(), batches()

    def made(effort: str) -> octavo.QuantizedModel:
        return octavo.quantize(
            model,
            calibration=data,
            mode=mode,
            qconfig=few_bits(mode),
            effort=effort,
            scope="model",
            progress=False,
        )

    q, plain = made("balanced"), made("fast")
    steps = q.provenance["steps"]
    of_static = (
        "observer histogram, ranges x 1.1",
        "observer histogram",
        "additions in float",
        "ends in float",
    )
    names = ["weights clip", "weights gptq", *(of_static if mode == "static" else ())]
    assert [step["step"] for step in steps] == names
    better = steps[-1]["after_db"] if mode != "static" else steps[1]["after_db"]
    assert better > steps[0]["before_db"] + 1
    fresh = batches(16)[8:]
    gained = sqnr(q.lower("reference"), model, fresh) - sqnr(plain.lower("reference"), model, fresh)
    assert gained > 1


@pytest.mark.sweep
def test_few_bits_learn_in_blocks_at_best() -> None:
    q = octavo.quantize(
        network(),
        calibration=batches(),
        qconfig=few_bits("static"),
        effort="best",
        progress=False,
    )
    last = q.provenance["steps"][-1]
    assert (last["step"], last["kept"]) == ("reconstruction", True)


def test_it_needs_data() -> None:
    with pytest.raises(CalibrationError, match="try on data what they do: pass calibration=loader"):
        octavo.quantize(network(), batches()[0], effort="best", mode="weight_only", progress=False)
