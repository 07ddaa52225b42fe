"""Searching on a small network: what is taken, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import octavo
from octavo.errors import ArtifactError, InputError
from octavo.searching import recipe
from octavo.searching.identity import of_function, of_model
from octavo.searching.journal import Journal
from octavo.searching.trial import Trial

TARGET = octavo.host_target()


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "layer_times", lambda q, tensors: ())  # no trial by chance
        yield


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


@dataclass(frozen=True)
class Finished:
    """A search that came to its end, and the folder that it kept: not to be written to."""

    result: octavo.SearchResult
    folder: Path

    def copied_to(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.folder, folder, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    return Finished(_search(checkpoint=folder), folder)


@pytest.fixture(scope="module")
def in_vain() -> octavo.SearchResult:
    """A search of which nothing is within the budget."""
    return _search(max_drop=-1.0)


def test_the_fastest_within_the_budget_is_taken(finished: Finished, tmp_path: Path) -> None:
    found = finished.result
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


@pytest.mark.sweep
def test_the_smallest() -> None:
    found = _search(objective="smallest", four_bits=True, max_drop=100.0)
    assert found.best is not None
    assert found.best.size_bytes == min(trial.size_bytes for trial in found.trials)  # type: ignore[type-var]
    assert "weight-only int4" in [trial.name for trial in found.trials]


def test_what_is_slower_says_so(finished: Finished) -> None:
    found = finished.result
    assert found.best is not None
    slow = replace(found, best=replace(found.best, over_fp32=1.5), bf16_over_fp32=0.7)
    assert "SLOWER than fp32 and bf16" in slow.verdict()
    assert "SLOWER" not in replace(slow, best=replace(found.best, over_fp32=0.5)).verdict()


@pytest.mark.sweep
def test_nothing_within_the_budget(in_vain: octavo.SearchResult) -> None:
    found = in_vain
    assert found.best is None
    assert found.model is None
    assert "No candidate loses at most -1; nearest: " in found.verdict()
    names = [trial.name for trial in found.trials]
    assert "static, histogram" in names
    assert any("1 of 3 layers in float" in name for name in names)


@pytest.mark.sweep
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


def test_finished_trials_are_not_repeated(finished: Finished, tmp_path: Path) -> None:
    first = finished.result
    again = _search(checkpoint=finished.copied_to(tmp_path))
    assert again.trials == first.trials  # with the seconds of the first run
    x = _data()[0][0]
    assert first.model is not None
    assert again.model is not None
    assert torch.equal(first.model(x), again.model(x))
    assert octavo.load(tmp_path / "best.octavo").provenance["candidate"] == first.best.name  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"x")])
def test_a_best_model_that_was_lost_or_damaged_is_made_again(
    finished: Finished, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    first = finished.result
    damage(finished.copied_to(tmp_path) / "best.octavo")
    again = _search(checkpoint=tmp_path)
    x = _data()[0][0]
    assert again.model is not None
    assert first.model is not None
    assert torch.equal(again.model(x), first.model(x))
    kept = octavo.load(tmp_path / "best.octavo")
    assert again.best is not None
    assert kept.provenance["candidate"] == again.best.name
    assert torch.equal(kept(x), first.model(x))


def test_the_time_is_kept(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time_budget=0 is too small for one trial"):
        _search(time_budget=0)
    one = Trial("static", "", (), 100.0, 0.0, 1000, 0.5, 3, 3, seconds=1000.0)
    finished.copied_to(tmp_path)
    (tmp_path / "trials.jsonl").write_text(json.dumps(one.to_dict()) + "\n")
    found = _search(checkpoint=tmp_path, time_budget=500)  # another trial may take as long
    assert [trial.name for trial in found.trials] == ["static"]
    assert not found.complete
    assert found.model is not None


def test_another_search_is_refused(finished: Finished, tmp_path: Path) -> None:
    finished.copied_to(tmp_path)
    with pytest.raises(InputError, match=r"its max_drop is 5\.0, not 4\.0; give another folder"):
        _search(checkpoint=tmp_path, max_drop=4.0)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"search\.json is damaged"):
        _search(checkpoint=tmp_path)


def _trained(rate: float) -> Callable[[octavo.QATModel], None]:
    def train(qat: octavo.QATModel) -> None:
        (rate * qat(_data()[0][0]).square().mean()).backward()

    return train


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "calibration": ({"calibration": [(1000 * x, y) for x, y in _data()]}, "its calibration is '96"),
    "fewer": ({"calibration": _data()[:2]}, "its calibration is '96 samples .*', not '64 samples"),
    "labels": ({"data": [(x, y + (y > 5)) for x, y in _data()][:2]}, "its data is"),
    "objective": ({"objective": "smallest"}, "its objective is 'fastest', not 'smallest'"),
    "training": ({"train": _trained(0.1)}, "its train is None, not '_trained"),
    "metric": ({"metric": "top1"}, "its metric is None, not 'top1'"),
    "bits": ({"four_bits": True}, "its four bits is False"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_all_that_trials_depend_on_is_the_searchs_identity(
    case: str, finished: Finished, tmp_path: Path
) -> None:
    finished.copied_to(tmp_path)
    before = (tmp_path / "trials.jsonl").read_bytes()
    changes, message = OTHERS[case]
    with pytest.raises(InputError, match=f"checkpoint of another search: {message}.*; give anoth"):
        _search(checkpoint=tmp_path, **changes)
    assert (tmp_path / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize("key", ["octavo", "torch", "machine", "graph"])
def test_so_are_versions_the_machine_and_the_network(
    key: str, finished: Finished, tmp_path: Path
) -> None:
    finished.copied_to(tmp_path)
    about = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps({**about, key: "another"}))
    with pytest.raises(InputError, match=f"its {key} is 'another', not"):
        _search(checkpoint=tmp_path)


@pytest.mark.sweep
def test_the_order_of_the_data_is_no_matter(tmp_path: Path) -> None:
    images, labels = (torch.cat(tensors) for tensors in zip(*_data(), strict=True))
    loader = DataLoader(TensorDataset(images, labels), 10, shuffle=True)
    first = _search(checkpoint=tmp_path, calibration=loader)
    assert _search(checkpoint=tmp_path, calibration=loader).trials == first.trials


class _Augmented:
    """Other values at each pass."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.scale * torch.randn(64, 3, 8, 8) for _ in range(2)])


@pytest.mark.sweep
def test_of_data_that_is_drawn_anew_only_the_size_is_known(tmp_path: Path) -> None:
    first = _search(checkpoint=tmp_path, calibration=_Augmented(1.0))
    assert _search(checkpoint=tmp_path, calibration=_Augmented(1.02)).trials == first.trials
    with pytest.raises(
        InputError, match=r"its calibration is .*128 samples, drawn anew at each pa"
    ):
        _search(checkpoint=tmp_path, calibration=_Augmented(3.0))


def test_a_functions_code_and_numbers_are_its_identity() -> None:
    assert of_function(_trained(0.1)) == of_function(_trained(0.1))
    assert of_function(_trained(0.1)) != of_function(_trained(0.2))
    assert of_function(lambda m: m.mean()) != of_function(lambda m: m.max())
    assert of_function(partial(max, 1)) != of_function(partial(max, 2))
    assert of_function(None) is None


DAMAGED = [
    ("trials.jsonl", b"\xff\xfe"),
    ("trials.jsonl", b"[]\n"),
    ("trials.jsonl", b'{"name": "static"}\n'),
    ("trials.jsonl", b"{"),
    ("trials.jsonl", b"[" * 100_000),
    ("search.json", b"[]"),
    ("search.json", b"null"),
    ("search.json", b"\xff"),
    ("search.json", b""),
    ("layers.json", b"{}{"),
    ("layers.json", b"3"),
    ("layers.json", b"[3]"),
    ("layers.json", b'[{"layer": "a", "float_s": "x", "int8_s": 1, "int8_over_float": 1}]'),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_is_one_error(
    finished: Finished, tmp_path: Path, name: str, content: bytes
) -> None:
    finished.copied_to(tmp_path)
    (tmp_path / name).write_bytes(content)
    about = json.loads((finished.folder / "search.json").read_text())
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is damaged \(.*\): delete the f"):
        Journal(tmp_path, about)


def test_values_of_another_type_are_damage(finished: Finished, tmp_path: Path) -> None:
    finished.copied_to(tmp_path)
    about = json.loads((finished.folder / "search.json").read_text())
    lines = (finished.folder / "trials.jsonl").read_text().splitlines()
    for key in json.loads(lines[0]):
        trial = json.loads(lines[0]) | {key: {}}
        (tmp_path / "trials.jsonl").write_text(json.dumps(trial))
        with pytest.raises(ArtifactError, match=f"damaged .its {key} is"):
            Journal(tmp_path, about)


@pytest.mark.sweep
def test_a_search_that_was_cut_short_says_so(
    finished: Finished, in_vain: octavo.SearchResult
) -> None:
    found = in_vain
    assert found.verdict().startswith("No candidate loses at most -1; nearest: ")
    cut = replace(found, complete=False, trials=found.trials[:1])
    assert cut.verdict().startswith(
        "The time was up after 1 candidate, none of which loses at most -1; nearest: static, "
    )
    assert cut.verdict().endswith(": give the search more time.")
    taken = finished.result
    assert "time was up" not in taken.verdict()
    words = replace(taken, complete=False).verdict()
    assert words.startswith(f"{taken.best.name}: ")  # type: ignore[union-attr]
    assert words.endswith(". The time was up after 2 candidates: there may be a better one.")


def test_a_model_without_a_latency_is_taken_all_the_same(finished: Finished) -> None:
    found = finished.result
    assert found.best is not None
    unknown = replace(found, best=replace(found.best, over_fp32=None, size_bytes=None))
    # On a CPU without VNNI weights have a bit less, and one image of 96 another class.
    metric = found.best.metric
    assert metric is not None
    assert metric > 98
    assert unknown.verdict() == f"{found.best.name}: {metric:.2f} (float 100.00)."


@pytest.mark.sweep
def test_candidates_that_all_failed_are_no_loss_of_accuracy(in_vain: octavo.SearchResult) -> None:
    failed = tuple(Trial(t.name, t.reason, (), error="no kernel") for t in in_vain.trials)
    verdict = replace(in_vain, trials=failed).verdict()
    assert verdict == "No candidate could be made: static: no kernel"


def test_the_fingerprint_is_of_names_and_values() -> None:
    net, other = _net(), _net()
    assert of_model(net) == of_model(other)
    with torch.no_grad():
        other[0].bias[0] += 1e-6  # type: ignore[index, operator, union-attr]
    assert of_model(net) != of_model(other)


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


@pytest.mark.sweep
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL after the second trial; the second run repeats neither."""
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from octavo.searching import measuring, recipe
        measuring.LATENCY_S = 0.01
        recipe.layer_times = lambda q, tensors: ()
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
