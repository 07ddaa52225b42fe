"""What tuning found is remembered: in the model, in its file, for one kind of CPU."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from made_measurements import Made
from torch import nn

import octavo
from octavo.errors import ArtifactError, InputError, OctavoWarning, RuntimeUnavailable
from octavo.model import artifact, parts, tunings
from octavo.runtimes import cpu, timing
from octavo.runtimes.tuning import Tuning, Variant, search

SECOND_FASTER = Variant("torch", in_float=frozenset({"2"}))
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


@pytest.fixture
def q() -> octavo.QuantizedModel:
    data, target = [torch.randn(2, 8) for _ in range(3)], octavo.host_target()
    return octavo.quantize(net(), calibration=data, target=target, progress=False)


def faster(variant: Variant) -> float:
    """The layer 2 is slow in int8, all others are in float; on other runtimes all is slow."""
    slow = 1.0 if variant.runtime == "torch" else 9.0
    return slow * (0.5 if "2" in variant.in_float else 1.0) * 1.5 ** len(variant.in_float - {"2"})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Nothing is timed: what takes how long is made up."""
    made = Made(faster)
    short = partial(
        search.tune, measure=lambda *args, **how: made.measure(*args, **how), clock=made.clock
    )
    monkeypatch.setattr(tunings, "tune", short)
    return made


@pytest.fixture
def tuned(q: octavo.QuantizedModel, made: Made) -> octavo.QuantizedModel:
    return q.lower("torch", tune=True)


def never(*args: Any, **options: Any) -> Any:
    raise AssertionError("nothing is to be measured")


def test_the_fastest_runs_and_is_remembered(
    q: octavo.QuantizedModel, tuned: octavo.QuantizedModel
) -> None:
    assert tuned.variant == SECOND_FASTER
    assert tuned.tunings[cpu.kind()].best == SECOND_FASTER
    assert q.tunings == tuned.tunings
    assert tuned.tuning is not None
    assert "2.00x" in str(tuned.tuning)
    assert q.variant is None
    assert torch.allclose(tuned(X), q(X), atol=0.2)
    assert tuned.lowered.agreement is not None
    assert tuned.lowered.agreement.agrees


def test_the_precision_that_is_asked_for_holds_for_all_trials(
    q: octavo.QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noting(*args: Any, **how: Any) -> Iterator[Tuning]:
        asked.append(args[4].precision)
        yield Tuning(cpu.kind(), Variant("torch"), Variant("torch"), finished=True)

    monkeypatch.setattr("octavo.model.model.trials", noting)
    lowered = q.lower("torch", tune=True, precision="float32")
    q.tune()
    assert asked == ["float32", None]
    assert lowered.options.precision == "float32"


def test_the_summary_says_which_layers_int8_slows_down(tuned: octavo.QuantizedModel) -> None:
    summary = tuned.summary()
    assert summary.fallbacks["2"] == (
        "float is faster: with linear 16x8 (2) in int8 the model takes 2.00x as long"
    )
    assert summary.note.startswith("tuned for this kind of CPU: torch, 1 layer in float; 2.00x as ")
    assert "2.00x" in str(summary)


def test_a_file_keeps_it_and_nothing_is_measured_again(
    tuned: octavo.QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.octavo"
    tuned.save(path)
    monkeypatch.setattr(tunings, "tune", never)
    monkeypatch.setattr(timing, "interleave", never)
    monkeypatch.setattr("octavo.runtimes.fastest.interleave", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OctavoWarning)
        loaded = octavo.load(path)
        plain = octavo.load(path, "torch")
    assert loaded.variant == SECOND_FASTER
    assert loaded.tunings == tuned.tunings
    assert torch.equal(loaded(X), tuned(X))
    assert octavo.load(path, "fastest").variant == SECOND_FASTER
    assert plain.lower("fastest").variant == SECOND_FASTER
    assert plain.variant is None
    loaded.save(tmp_path / "again.octavo")
    assert artifact.load(tmp_path / "again.octavo").tunings == tuned.tunings


def test_samples_stay_where_they_are_asked_for(
    tuned: octavo.QuantizedModel, tmp_path: Path
) -> None:
    tuned.save(tmp_path / "m.octavo", samples=True)
    loaded = octavo.load(tmp_path / "m.octavo")
    assert loaded.samples is not None
    assert loaded.variant == SECOND_FASTER


def test_another_kind_of_cpu_warns_and_runs_untuned(
    tuned: octavo.QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.save(tmp_path / "m.octavo")
    monkeypatch.setattr(cpu, "kind", lambda: "some other CPU")
    with pytest.warns(OctavoWarning, match="this is another CPU, some other CPU, where it runs un"):
        loaded = octavo.load(tmp_path / "m.octavo")
    assert (loaded.variant, loaded.runtime) == (None, "torch")
    assert len(loaded.tunings) == 1
    again = loaded.lower("torch", tune=True)
    assert list(again.tunings) == [*tuned.tunings, "some other CPU"]


@pytest.mark.parametrize(
    "best", [Variant("gone"), Variant("reference", threads=2), Variant("torch", threads=2)]
)
def test_what_cannot_run_any_more_warns_and_runs_untuned(
    tuned: octavo.QuantizedModel, tmp_path: Path, best: Variant
) -> None:
    kind = cpu.kind()
    tuned.tunings[kind] = Tuning(kind, best, Variant("torch"), finished=True)
    tuned.save(tmp_path / "m.octavo")
    with pytest.warns(OctavoWarning, match="as it was tuned for this CPU .* it cannot run here: "):
        loaded = octavo.load(tmp_path / "m.octavo")
    assert loaded.variant is None
    assert loaded(X).shape == (3, 4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_that_is_asked_for_is_that_of_the_proof_as_well(
    q: octavo.QuantizedModel, made: Made, runtime: str
) -> None:
    pytest.importorskip(runtime)  # runtimes that are compiled for one batch
    assert q.samples is not None
    assert len(q.samples[0]) == 2
    made.seconds_of = lambda variant: 0.5 if variant == Variant(runtime) else 1.0
    fast = q.lower("fastest", tune=True, batch=1)
    assert fast.variant == Variant(runtime)
    assert torch.allclose(fast(X[:1]), q(X[:1]), atol=0.2)


def test_an_interruption_loses_nothing(q: octavo.QuantizedModel, made: Made) -> None:
    measure: Callable[..., Mapping[Variant, Any]] = made.measure
    calls = 0

    def interrupted(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return measure(*args, **how)

    made.measure = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        q.tune(runtimes=["torch"])
    begun = q.tunings[cpu.kind()]
    assert begun.trials
    assert not begun.finished
    found = q.tune(runtimes=["torch"])
    assert found.finished
    assert found.best == SECOND_FASTER
    assert found.trials[: len(begun.trials)] == begun.trials
    assert len({trial.key for trial in found.trials}) == len(found.trials)


def test_data_is_what_the_error_is_measured_on(q: octavo.QuantizedModel, made: Made) -> None:
    found = q.tune(runtimes=["torch"], data=[torch.randn(4, 8) for _ in range(20)], batch=5)
    assert found.best == SECOND_FASTER
    with pytest.raises(InputError, match="data has no batches"):
        q.tune(data=[])
    with pytest.raises(InputError):
        q.tune(data=[torch.randn(4, 9)])
    with pytest.raises(InputError, match="data is for tune=True"):
        q.lower("torch", data=[X])


@pytest.mark.parametrize(
    ("runtime", "options", "error", "said"),
    [
        ("torch", {"budget": 0}, InputError, "budget=0: give seconds, more than 0"),
        ("torch", {"budget": "1"}, InputError, "budget is '1': give a number"),
        ("nope", {}, RuntimeUnavailable, "there is no runtime 'nope'"),
        ("reference", {}, InputError, "name another than 'reference'"),
        ("torch", {"check": False}, InputError, "leave check=False out"),
        ("torch", {"threads": 1}, RuntimeUnavailable, "no option 'threads'"),
    ],
)
def test_what_cannot_be_tuned(
    q: octavo.QuantizedModel, runtime: str, options: dict[str, Any], error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        q.lower(runtime, tune=True, **options)
    assert q.tunings == {}


def test_what_a_file_may_hold(tuned: octavo.QuantizedModel, q: octavo.QuantizedModel) -> None:
    text = tunings.to_json(tuned.tunings)
    assert tunings.from_json(text, q.graph) == tuned.tunings
    for wrong in ("{", "3", "[3]", '[{"kind": "x"}]'):
        with pytest.raises(ArtifactError, match="its tunings are malformed"):
            tunings.from_json(wrong, q.graph)
    for which, sizes in product(("best", "untuned"), ([[3, 9]], [[3, 8], [3, 8]], [[3]], [])):
        data = json.loads(text)
        data[0][which]["sizes"] = sizes
        with pytest.raises(ArtifactError, match="which it does not take"):
            tunings.from_json(json.dumps(data), q.graph)
    data[0]["best"]["sizes"] = [[10**12, 8]]
    with pytest.raises(ArtifactError, match="more than"):
        tunings.from_json(json.dumps(data), q.graph)


def test_a_state_dict_of_another_model_forgets_it(
    tuned: octavo.QuantizedModel, q: octavo.QuantizedModel
) -> None:
    tuned.load_state_dict(q.state_dict())
    assert (tuned.tunings, tuned.variant) == ({}, None)


class Around(nn.Module):
    """Code that no graph holds, around a part that one does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y if y.sum().item() > 0 else -y


def test_each_region_is_tuned(made: Made, tmp_path: Path) -> None:
    data, target = [torch.randn(2, 8) for _ in range(3)], octavo.host_target()
    q = octavo.quantize(Around(), calibration=data, target=target, scope="regions", progress=False)
    tuned = octavo.lower(q, "torch", tune=True, budget=10)
    (region,) = parts.regions_of(tuned).values()
    assert region.variant == SECOND_FASTER
    octavo.save(tuned, tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo", into=Around())
    (again,) = parts.regions_of(loaded).values()
    assert again.variant == SECOND_FASTER
    assert torch.equal(loaded(X), tuned(X))
    with pytest.raises(InputError, match="budget is '10': give a number"):
        octavo.lower(q, "torch", tune=True, budget="10")
    with pytest.raises(InputError, match="data is of the whole model"):
        octavo.lower(q, "torch", tune=True, data=[X])


def test_modules_have_one_way_to_run() -> None:
    q = octavo.quantize(net(), scope="modules", progress=False)
    with pytest.raises(InputError, match="there is nothing to tune"):
        octavo.lower(q, "fastest", tune=True)
