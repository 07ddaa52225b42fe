"""Many threads quantize, save, load, lower and call at once; the process stays as it was."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import octavo


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


def at_once(jobs: list[Callable[[], None]]) -> list[str]:
    """The errors of jobs that run in a thread each."""
    errors: list[str] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def process() -> object:
    umask = os.umask(0o022)
    os.umask(umask)
    return (
        umask,
        logging.root.manager.disable,
        sys.stderr,
        warnings.showwarning,
        list(warnings.filters),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.random.get_rng_state().tolist(),
    )


def test_threads_quantize_save_load_and_call_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [Net(8 * (1 + index)).eval() for index in range(4)]
    x, data = torch.randn(5, 16), [torch.randn(8, 16) for _ in range(3)]
    with torch.no_grad():
        expected = [model(x) for model in models]
        served, branching = Net(64).eval(), Branching()
        answer = served(x)
    found: dict[int, list[Tensor]] = {}
    target = octavo.host_target()

    def one(index: int) -> None:
        q = octavo.quantize(models[index], calibration=data, target=target, progress=False)
        path = tmp_path / f"{index}.octavo"
        q.save(path)
        loaded = octavo.load(path)
        found[index] = [q(x), loaded(x), loaded.lower("reference")(x)]

    def float_calls() -> None:
        with torch.no_grad():
            for _ in range(300):
                assert torch.equal(served(x), answer)

    def failing() -> None:
        try:
            octavo.quantize(branching, x, scope="model", progress=False)
        except octavo.OctavoError:
            return
        raise AssertionError("a branch on values was captured")

    alone = []
    for index, model in enumerate(models):
        q = octavo.quantize(model, calibration=data, target=target, progress=False)
        alone.append(q(x))
        assert index not in found
    before = process()
    jobs = [lambda index=index: one(index) for index in range(4)]
    assert at_once([*jobs, float_calls, failing]) == []
    assert process() == before
    for index, results in found.items():
        for result in results[:2]:
            assert torch.equal(result, alone[index])
        assert (results[2] - expected[index]).norm() < 0.05 * expected[index].norm()
    assert sorted(found) == [0, 1, 2, 3]


class Branching(Net):
    def __init__(self) -> None:
        super().__init__(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.a(-x)  # type: ignore[no-any-return]


def test_a_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    q = octavo.quantize(Net(8), torch.randn(2, 16), mode="weight_only", progress=False)
    umask = os.umask(0o027)
    try:
        q.save(tmp_path / "model.octavo")
    finally:
        os.umask(umask)
    assert (tmp_path / "model.octavo").stat().st_mode & 0o777 == 0o640
