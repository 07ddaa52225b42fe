"""Two workers of a local Ray cluster: the results of one process, and what a dead worker costs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import InputError, MissingExtra, OctavoError
from octavo.measuring.engines import opened
from octavo.measuring.engines import ray as ray_engine
from octavo.searching import recipe
from octavo.searching.trial import Trial

TARGET = octavo.host_target()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The user's own cluster; the engine neither starts nor stops it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def two_workers(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(recipe, "layer_times", lambda q, tensors: ())


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)).eval()


def _data() -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(1)
    batches = [torch.randn(32, 8, generator=chance) for _ in range(5)]
    with torch.no_grad():
        return [(x, _net()(x).argmax(1)) for x in batches]


def _measured(trial: Trial) -> Trial:
    """What does not depend on the clock."""
    return replace(trial, seconds=0.0, over_fp32=None)


@pytest.mark.sweep
def test_what_the_work_raises_is_raised(two_workers: None) -> None:
    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            raise InputError("the value is bad")

        return work

    with opened("ray", make) as workers, pytest.raises(InputError, match="the value is bad"):
        list(workers.run(range(3)))
    held = SimpleNamespace(lines=(line for line in ""))
    with (
        pytest.raises(InputError, match="cannot be sent to Ray's workers"),
        opened("ray", lambda: held.lines),
    ):
        pass


@pytest.mark.parametrize("metric", [None, lambda outputs, labels: float(outputs.std())])
def test_sensitivity_is_that_of_one_process_to_the_last_bit(two_workers: None, metric: Any) -> None:
    data = _data()
    settings: dict[str, Any] = {"calibration": data, "target": TARGET, "metric": metric}
    here = octavo.sensitivity(_net(), data=data, **settings)
    there = octavo.sensitivity(_net(), data=iter(data), engine="ray", **settings)
    assert there == here
    assert there.samples == 160


def test_an_interruption_keeps_what_was_measured(two_workers: None) -> None:
    data = _data()

    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        yield from data
        yield from data
        time.sleep(0.5)
        raise KeyboardInterrupt

    found = octavo.sensitivity(
        _net(), calibration=data, data=interrupted(), target=TARGET, engine="ray"
    )
    assert not found.complete
    assert 0 < found.samples <= 320
    assert found.samples % 32 == 0


@pytest.mark.sweep
def test_a_search_is_that_of_one_process_though_a_worker_is_killed(
    two_workers: None, cluster: Any, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the third trial: it is made again, and no other."""
    driver, log, data = os.getpid(), tmp_path / "log", _data()

    def quality(model: nn.Module) -> float:
        if os.getpid() != driver:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if len(log.read_text().splitlines()) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in data)

    settings: dict[str, Any] = {"calibration": data, "max_drop": -1.0, "target": TARGET}
    here = octavo.search(_net(), evaluate=quality, **settings)
    there = octavo.search(
        _net(), evaluate=quality, engine="ray", checkpoint=tmp_path / "found", **settings
    )
    assert list(map(_measured, there.trials)) == list(map(_measured, here.trials))
    assert len(there.trials) == 8
    assert there.complete
    assert all(trial.over_fp32 for trial in there.trials)  # measured here
    assert cluster.is_initialized()
    made = log.read_text().splitlines()
    # What was begun ahead of the walk, for a guess that was wrong, is at most one here.
    assert len(there.trials) + 1 <= len(made) <= len(there.trials) + 2
    assert len(set(made)) >= 3  # one worker died, and another came


def test_a_worker_that_always_dies_is_an_error_of_that_item(
    two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "RETRIES", 1)

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return 10 * item

        return work

    with opened("ray", make) as workers:
        assert workers.slots == 2
        found = dict(workers.run(range(3)))
    assert (found[0], found[2]) == (0, 20)
    assert isinstance(found[1], OctavoError)
    assert "its worker died 2 times" in str(found[1])


def test_a_cluster_of_its_own_is_quiet_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda *args, **kwargs: calls.append((args, kwargs)),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False}],
        remote=lambda **kwargs: lambda function: function,
        put=lambda value: value,
        shutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    torch.set_num_threads(2)
    with opened("ray", lambda: abs) as workers:
        assert workers.slots == 2  # two threads each
    (address,), settings = calls[0]
    assert address == "local"
    assert settings["include_dashboard"] is False
    assert settings["log_to_driver"] is False
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert calls[-1] == "shutdown"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with opened("ray", lambda: abs):
        pass
    assert calls[2][0] == ()  # the cluster that the environment names


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtra, match=r'pip install "octavo\[ray\]"'),
        opened("ray", lambda: abs),
    ):
        pass
    data = _data()
    for function, more in ((octavo.search, {"max_drop": 1.0}), (octavo.sensitivity, {})):
        with pytest.raises(InputError, match=r"engine is 'dask'; one of \['ray'\]"):
            function(_net(), calibration=data, data=data, engine="dask", **more)  # type: ignore[operator]
