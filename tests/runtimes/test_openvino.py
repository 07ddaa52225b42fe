"""Programs for sizes. And networks on which OpenVINO's compiler once ended the process: they run in
one of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from torch import nn
from torch.nn import functional as F

import octavo
from octavo.runtimes.openvino import _Program, _Programs
from octavo.runtimes.options import Options

AGREES_DB = 45.0  # a few integers that are a step off


class Joined(nn.Module):
    """Branches with values below zero and without, what joins them, and a convolution."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.join = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), join
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.out(self.join(F.elu(self.a(x)), self.b(x).relu()))


def _cat(a, b):
    return torch.cat([a, b], 1)


# OpenVINO leaves out what follows the concatenation, or takes it into the next QuantizeLinear.
JOINS = {
    "a relu": lambda a, b: _cat(a, b).relu(),
    "no padding by reflection": lambda a, b: F.pad(_cat(a, b), (0, 0, 0, 0), "reflect"),
    "no padding around": lambda a, b: F.pad(_cat(a, b), (0, 0, 0, 0), "circular"),
    "no padding and a relu": lambda a, b: F.pad(_cat(a, b), (0, 0, 0, 0), "reflect").relu(),
    "a stack": lambda a, b: torch.stack([a, b], 1).relu().flatten(1, 2),
    "a roll": lambda a, b: _cat(a, b).roll(1, 2).relu(),
    "padding around": lambda a, b: F.pad(_cat(a, b), (1, 1, 0, 2), "circular").relu(),
    "a concatenation of one": lambda a, b: _cat(_cat(a, b)[:, :5], b[:, 1:]).relu(),
    "a branch in float": lambda a, b: _cat(a, b.sin()).relu(),
    "what another one holds": lambda a, b: _cat(a, _cat(a, b)[:, 2:6]).relu(),
    "the largest": lambda a, b: F.pad(_cat(a, b), (0, 0, 0, 0), "reflect").amax(2, True),
}


class Compiled:
    """What OpenVINO makes of a model that reads nothing."""

    inputs = ()


def test_calls_at_once_compile_a_size_once_and_the_sizes_met_last_are_kept():
    graph = octavo.capture(nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8))
    compiled = []

    def compile_for(sizes):
        compiled.append(sorted(sizes.values()))
        time.sleep(0.05)  # so that the others come meanwhile
        return Compiled()

    programs = _Programs(graph, Options(), compile_for)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(programs.of, [[(1, 3, 8, 8)]] * 4))
    assert compiled == [[8, 8]]
    assert all(program is found[0] for program in found)
    for side in (9, 10, 11, 12, 13, 14, 15, 8, 16, 8):  # one more than are kept
        programs.of([(1, 3, side, side)])
    assert len(compiled) == 9
    programs.of([(1, 3, 9, 9)])  # which was met the longest ago
    assert len(compiled) == 10


@pytest.mark.sweep
def test_what_follows_a_concatenation():
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {(name, target): db for name, target, db in map(json.loads, done.stdout.splitlines())}
    assert not done.returncode, f"behind {list(found)[-1:]}: {done.returncode} {done.stderr[-500:]}"
    assert list(found) == [(name, target) for name in JOINS for target in ("x86", "edge")]
    assert min(found.values()) > AGREES_DB, found


class Pooled(nn.Module):
    """The mean over a text's tokens, of integers with a zero point."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, ids):
        x = self.table(ids)
        return self.head((self.one(x) + self.other(x)).mean(1))


def test_a_mean_over_texts_of_any_length_is_the_oracles():
    torch.manual_seed(0)
    data = [torch.randint(0, 50, (8, 12))]
    q = octavo.quantize(Pooled(), calibration=data, target="openvino", progress=False)
    lowered, oracle = q.lower("openvino"), q.lower("reference")
    for length in (5, 12, 30):
        ids = torch.randint(0, 50, (8, length))
        assert sqnr_db(oracle(ids), lowered(ids)) > AGREES_DB


def _main():
    for name, join in JOINS.items():
        torch.manual_seed(0)
        x, model = 5 * torch.randn(2, 4, 6, 6), Joined(join)
        graph = octavo.capture(model, x)
        for target in ("x86", "edge"):
            with captured_as(graph):
                q = octavo.quantize(model, calibration=[x], target=target, progress=False)
            close = sqnr_db(q.lower("reference")(x), q.lower("openvino")(x))
            sys.stdout.write(f"{json.dumps([name, target, min(close, 999.0)])}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _main()


class Request:
    """What OpenVINO runs a call with."""

    def __init__(self):
        self.called = []

    def infer(self, arrays, **how):
        self.called.append("infer")

    def start_async(self, arrays, **how):
        self.called.append("start_async")

    def wait(self):
        self.called.append("wait")

    def get_output_tensor(self, index):
        return SimpleNamespace(data=np.full(2, len(self.called)))


def test_only_the_thread_that_ends_with_the_process_runs_a_model_itself():
    """Others keep a part of it until they end, and OpenVINO may free the rest before."""
    request = Request()
    compiled = SimpleNamespace(inputs=(), outputs=(None,), create_infer_request=lambda: request)
    program = _Program(compiled, octavo.capture(nn.ReLU(), torch.rand(2)))
    assert program.run(())[0].tolist() == [1, 1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(program.run, ()).result()[0].tolist() == [3, 3]
    assert request.called == ["infer", "start_async", "wait"]


def test_a_forked_process_waits_for_no_threads_of_openvino(monkeypatch):
    """They stayed in the process that compiled the model."""
    request = Request()
    compiled = SimpleNamespace(inputs=(), outputs=(), create_infer_request=lambda: request)
    program = _Program(compiled, octavo.capture(nn.ReLU(), torch.rand(2)))
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(program.run, ()).result()
    assert request.called == ["infer"]
