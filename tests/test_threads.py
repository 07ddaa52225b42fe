"""Many threads call one model at once, at different batch sizes: each gets its own right result."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from recurrent import Recurrent
from torch import Tensor, nn

import octavo
from octavo.numerics.native import library

THREADS = 8
CALLS = int(os.environ.get("OCTAVO_THREAD_CALLS", "50"))
TARGET = octavo.host_target()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def conv() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), *pooled)


def shortcut() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return (self.b(y) + y).relu()

    return Net()


CASES = {
    "static": (linear, (16,), {"mode": "static"}),
    "static conv": (conv, (3, 8, 8), {"mode": "static"}),
    "sum into memory": (shortcut, (3, 8, 8), {"mode": "static"}),
    "dynamic": (linear, (16,), {"mode": "dynamic"}),
    "weight only": (linear, (16,), {"mode": "weight_only"}),
    "four bits": (linear, (16,), {"qconfig": octavo.weight_only_qconfig(4, group_size=16)}),
    "recurrent": (lambda: Recurrent(nn.LSTM(8, 8, batch_first=True)), (5, 8), {"mode": "dynamic"}),
}


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """``work(index)`` in so many threads that start together; an error in one is raised."""
    barrier = threading.Barrier(count)

    def started(index: int) -> object:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


@cache
def quantized(name: str) -> octavo.QuantizedModel:
    """For all runtimes."""
    torch.manual_seed(0)
    make, shape, how = CASES[name]
    data = [torch.randn(4, *shape)]
    return octavo.quantize(make().eval(), calibration=data, target=TARGET, progress=False, **how)


def made(name: str, runtime: str) -> tuple[octavo.QuantizedModel, list[Tensor]]:
    """A model that is not made ready yet, and an input of another batch size for each thread."""
    q, shape = quantized(name), CASES[name][1]
    q = octavo.QuantizedModel(q.graph, q.plan, q.signature, q.provenance, runtime)
    return q, [torch.randn(index + 1, *shape) for index in range(THREADS)]


@pytest.mark.parametrize("runtime", ["torch", "reference", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_calls_at_once(name, runtime):
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    q, inputs = made(name, runtime)
    alone = copy.deepcopy(q)
    expected = [alone(x) for x in inputs]

    def calls(index: int) -> int:
        """How many results are wrong."""
        wanted, x = expected[index], inputs[index]
        return sum(not torch.equal(q(x), wanted) for _ in range(CALLS))

    assert at_once(THREADS, calls) == [0] * THREADS


@pytest.mark.sweep  # Inductor compiles for many seconds
def test_calls_at_once_that_compile():
    q, inputs = made("sum into memory", "inductor")
    expected = [q.lower("torch")(x) for x in inputs]

    def calls(index: int) -> bool:
        return all(torch.allclose(q(inputs[index]), expected[index], atol=0.05) for _ in range(50))

    assert all(at_once(3, calls))


def test_a_model_is_made_ready_once():
    q, inputs = made("static", "torch")
    found = at_once(THREADS, lambda index: (q(inputs[0]), q.lowered)[1])
    assert all(lowered is found[0] for lowered in found)


def test_copies_saves_and_loads_at_once(tmp_path):
    q, inputs = made("static conv", "torch")
    expected = q(inputs[2])

    def work(index: int) -> bool:
        file = tmp_path / f"{index % 2}.octavo"
        for _ in range(5):
            twin = copy.deepcopy(q)
            twin.save(file)
            loaded = octavo.load(file)
            loaded.load_state_dict(q.state_dict())
            if not all(torch.equal(m(inputs[2]), expected) for m in (q, twin, loaded)):
                return False
        return True

    assert all(at_once(4, work))


FORK = """
import os
import torch
from torch import nn
import octavo

torch.set_num_threads(1)
x = torch.randn(4, 16)
q = octavo.quantize(nn.Linear(16, 8), calibration=[x], target=octavo.host_target(), progress=False)
expected = q(x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(q(x), expected) else 1)
print(os.waitpid(child, 0)[1])
"""


def test_a_process_that_was_forked_goes_on():
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100, check=True
    )
    assert run.stdout == "0\n"


FORKS_AMID_CALLS = """
import os
import signal
import threading
import time
import torch
from octavo.runtimes.native.convolution import Convolution, Epilogue, Geometry

torch.set_num_threads(3)
weight = torch.ones(256, 1, 1, 256, dtype=torch.int8)
epilogue = Epilogue(torch.ones(256), torch.zeros(256))
layer = Convolution.of(Geometry(256, 256), weight, 0, epilogue)
x = torch.ones(1, 300, 30, 256, dtype=torch.uint8)
ended = threading.Event()

def call():
    while not ended.is_set():
        layer(x)

caller = threading.Thread(target=call)
caller.start()
for _ in range(6):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # by which it dies, if it waits for what its parent's threads had begun
        y = layer(x)
        torch.set_num_threads(1)  # torch's own threads do not live on in a forked process
        os._exit(0 if bool((y == 256).all()) else 1)
    status = os.waitpid(child, 0)[1]
    if status:
        break
ended.set()
caller.join()
print(status)
"""


def test_a_process_that_was_forked_amid_a_call_has_calls_of_its_own():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here: make native")
    run = subprocess.run(
        [sys.executable, "-c", FORKS_AMID_CALLS],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert run.stdout == "0\n"


AFFINITIES = """
import os
import torch
from octavo.runtimes.native.convolution import Convolution, Epilogue, Geometry

cpus = os.sched_getaffinity(0)
torch.set_num_threads(len(cpus))
weight = torch.ones(256, 1, 1, 256, dtype=torch.int8)
layer = Convolution.of(Geometry(256, 256), weight, 0, Epilogue(torch.ones(256), torch.zeros(256)))
x = torch.ones(1, 100, 30, 256, dtype=torch.uint8)
before = os.listdir("/proc/self/task")
for cpu in cpus:
    os.sched_setaffinity(0, {cpu})  # where this thread is from here on, also with the next line
    os.sched_setaffinity(0, cpus)
    layer(x)
workers = set(os.listdir("/proc/self/task")) - set(before)
may_run = [os.sched_getaffinity(int(worker)) for worker in workers]
print(len(workers) == len(cpus) - 1, all(len(cpus - may) == 1 and may < cpus for may in may_run))
os.sched_setaffinity(0, {min(cpus)})
layer(x)
print(all(os.sched_getaffinity(int(worker)) == cpus - {min(cpus)} for worker in workers))
few = set(sorted(cpus)[:2])  # of three or more, there are not enough for workers
os.sched_setaffinity(0, few)
layer(x)
most = few if len(cpus) > 2 else cpus
print(all(os.sched_getaffinity(int(worker)) <= most for worker in workers))
os.sched_setaffinity(0, cpus)
torch.set_num_threads(len(cpus) + 2)  # more than there are CPUs for
layer(x)
print(all(os.sched_getaffinity(int(worker)) == cpus for worker in workers))
"""


def test_workers_keep_off_the_cpu_of_their_caller():
    if library.library() is None or not Path("/proc/self/task").exists():
        pytest.skip("the kernels are not compiled here, or the system is not Linux")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU")
    run = subprocess.run(
        [sys.executable, "-c", AFFINITIES], capture_output=True, text=True, timeout=100, check=True
    )
    assert run.stdout.split() == ["True"] * 5
