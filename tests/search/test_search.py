"""Searching on a small network: what is taken, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, InputError
from octavo.search import loop, measuring
from octavo.search.journal import fingerprint
from octavo.search.trial import Trial

TARGET = octavo.host_target()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LATENCY_S", 0.01)
    monkeypatch.setattr(loop, "layer_times", lambda q, tensors: ())  # no trial by chance


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def _data() -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels are what the network says."""
    chance = torch.Generator().manual_seed(1)
    images = [torch.randn(32, 3, 8, 8, generator=chance) for _ in range(3)]
    net = _net()
    with torch.no_grad():
        return [(x, net(x).argmax(1)) for x in images]


def _search(**changes: object) -> octavo.SearchResult:
    data = _data()
    settings = {"calibration": data, "data": data, "max_drop": 5.0, "target": TARGET} | changes
    return octavo.search(_net(), **settings)  # type: ignore[arg-type]


def test_the_fastest_within_the_budget_is_taken(tmp_path: Path) -> None:
    found = _search()
    assert found.complete
    assert found.float_metric == 100.0
    assert [trial.name for trial in found.trials] == ["static", "dynamic"]
    assert found.best is not None
    assert found.best.over_fp32 == min(trial.over_fp32 for trial in found.trials)  # type: ignore[type-var]
    assert isinstance(found.model, octavo.QuantizedModel)
    assert found.best.name in found.verdict()
    assert str(found.best.name) in str(found)
    assert json.loads(found.to_json())["best"]["name"] == found.best.name
    (tmp_path / "found.json").write_text(found.to_json())
    again = octavo.SearchResult.read(tmp_path / "found.json")
    assert again.to_json() == found.to_json()
    assert str(again) == str(found)


def test_the_smallest() -> None:
    found = _search(objective="smallest", four_bits=True, max_drop=100.0)
    assert found.best is not None
    assert found.best.size_bytes == min(trial.size_bytes for trial in found.trials)  # type: ignore[type-var]
    assert "weight-only int4" in [trial.name for trial in found.trials]


def test_what_is_slower_says_so() -> None:
    found = _search()
    assert found.best is not None
    slow = replace(found, best=replace(found.best, over_fp32=1.5), bf16_over_fp32=0.7)
    assert "SLOWER than fp32 and bf16" in slow.verdict()
    assert "SLOWER" not in replace(slow, best=replace(found.best, over_fp32=0.5)).verdict()


def test_nothing_within_the_budget() -> None:
    found = _search(max_drop=-1.0)
    assert found.best is None
    assert found.model is None
    assert "No candidate loses at most -1; nearest: " in found.verdict()
    names = [trial.name for trial in found.trials]
    assert "static, histogram" in names
    assert any("1 of 3 layers in float" in name for name in names)


def test_a_training_loop_is_used() -> None:
    trained = []

    def train(qat: octavo.QATModel) -> None:
        trained.append(qat.training)
        qat(_data()[0][0]).square().mean().backward()

    found = _search(max_drop=-1.0, train=train)
    assert trained == [True]
    assert found.trials[-1].name == "trained with rounding"


def test_a_function_decides() -> None:
    x = _data()[0][0]
    seen = []

    def quality(model: nn.Module) -> float:
        seen.append(type(model).__name__)
        return -float(model(x).std())

    found = _search(data=None, evaluate=quality, calibration=[x])
    assert seen[:2] == ["Sequential", "Sequential"]
    assert found.float_metric == pytest.approx(-float(_net()(x).std()))


def test_finished_trials_are_not_repeated(tmp_path: Path) -> None:
    first = _search(checkpoint=tmp_path)
    again = _search(checkpoint=tmp_path)
    assert again.trials == first.trials  # with the seconds of the first run
    x = _data()[0][0]
    assert first.model is not None
    assert again.model is not None
    assert torch.equal(first.model(x), again.model(x))
    assert octavo.load(tmp_path / "best.octavo").provenance["candidate"] == first.best.name  # type: ignore[union-attr]


def test_a_best_model_that_was_lost_is_made_again(tmp_path: Path) -> None:
    first = _search(checkpoint=tmp_path)
    (tmp_path / "best.octavo").unlink()
    again = _search(checkpoint=tmp_path)
    assert torch.equal(first.model(_data()[0][0]), again.model(_data()[0][0]))  # type: ignore[misc]
    kept = octavo.load(tmp_path / "best.octavo")
    assert again.best is not None
    assert kept.provenance["candidate"] == again.best.name


def test_the_time_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time_budget=0 is too small for one trial"):
        _search(time_budget=0)
    one = Trial("static", "", (), 100.0, 0.0, 1000, 0.5, 3, 3, seconds=1000.0)
    _search(checkpoint=tmp_path)
    (tmp_path / "trials.jsonl").write_text(json.dumps(one.to_dict()) + "\n")
    found = _search(checkpoint=tmp_path, time_budget=500)  # another trial may take as long
    assert [trial.name for trial in found.trials] == ["static"]
    assert not found.complete
    assert found.model is not None


def test_another_search_is_refused(tmp_path: Path) -> None:
    _search(checkpoint=tmp_path)
    with pytest.raises(InputError, match=r"its max_drop is 5\.0, not 4\.0; give another folder"):
        _search(checkpoint=tmp_path, max_drop=4.0)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"search\.json is damaged"):
        _search(checkpoint=tmp_path)


def test_the_fingerprint_is_of_names_and_values() -> None:
    net, other = _net(), _net()
    assert fingerprint(net) == fingerprint(other)
    with torch.no_grad():
        other[0].bias[0] += 1e-6  # type: ignore[index, operator, union-attr]
    assert fingerprint(net) != fingerprint(other)


def test_metrics_that_cannot_be_used() -> None:
    x = _data()[0][0]

    def broken(model: nn.Module) -> float:
        raise KeyError("labels")

    def undefined(model: nn.Module) -> float:
        return float("nan")

    def random(model: nn.Module) -> float:
        return float(torch.rand(()))

    for function, words in (
        (broken, "broken raised KeyError"),
        (undefined, "undefined returned nan"),
        (random, "random gives .* and then .* for the same model"),
    ):
        with pytest.raises(InputError, match=words):
            _search(data=None, evaluate=function)
    with pytest.raises(InputError, match="the data has no labels"):
        _search(data=[x])
    with pytest.raises(InputError, match="data can be iterated only once"):
        _search(data=iter(_data()))
    with pytest.raises(InputError, match="needs data"):
        _search(data=None, calibration=None)
    with pytest.raises(InputError, match="objective is 'best'"):
        _search(objective="best")


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL after the second trial; the second run repeats neither."""
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from octavo.search import loop, measuring
        measuring.LATENCY_S = 0.01
        loop.layer_times = lambda q, tensors: ()
        import test_search
        test_search._search(max_drop=-1.0, checkpoint={str(tmp_path)!r})
        """
    )
    running = subprocess.Popen([sys.executable, "-c", script], env={**os.environ})
    lines = tmp_path / "trials.jsonl"
    started = time.monotonic()
    while not lines.exists() or len(lines.read_text().splitlines()) < 2:
        assert running.poll() is None
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = [json.loads(line) for line in lines.read_text().splitlines()]
    found = _search(max_drop=-1.0, checkpoint=tmp_path)
    assert [trial.to_dict() for trial in found.trials[: len(before)]] == [
        {**trial, "in_float": tuple(trial["in_float"])} for trial in before
    ]
    assert found.complete
