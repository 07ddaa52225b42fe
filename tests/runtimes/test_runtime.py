"""The table of runtimes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch

from octavo.errors import RuntimeUnavailable
from octavo.runtimes import ORACLE, RUNTIMES, has_own_threads
from octavo.runtimes.runtime import check_device, runtime_of

LOADED = """
import sys
from octavo.runtimes import RUNTIMES
print("openvino" in RUNTIMES, len(RUNTIMES), "octavo.runtimes.openvino" in sys.modules)
"""


def test_a_runtime_is_imported_when_its_record_is_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "7", "False"]


def test_the_records():
    assert list(RUNTIMES) == [
        "reference",
        "torch",
        "inductor",
        "onnxruntime",
        "openvino",
        "executorch",
        "litert",
    ]
    assert not RUNTIMES[ORACLE].cpu_only
    assert RUNTIMES["torch"].options == ("joined", "channels_last", "programs")
    assert [name for name in RUNTIMES if RUNTIMES[name].candidate] == [
        "torch",
        "onnxruntime",
        "openvino",
    ]
    assert [name for name in RUNTIMES if has_own_threads(name)] == [
        "onnxruntime",
        "openvino",
        "litert",
    ]
    assert [name for name in RUNTIMES if RUNTIMES[name].onnx] == ["onnxruntime", "openvino"]
    assert not has_own_threads("eager")
    with pytest.raises(FrozenInstanceError):
        RUNTIMES["torch"].candidate = False


def test_a_name_that_is_none():
    with pytest.raises(RuntimeUnavailable, match=r"no runtime 'nope': .*'litert', 'fastest'$"):
        runtime_of("nope", "fastest")


def test_what_is_not_on_the_cpu():
    check_device("torch", torch.device("cpu"))
    with pytest.raises(RuntimeUnavailable, match=r"the torch runtime runs on the CPU, .* on meta"):
        check_device("torch", torch.device("meta"))
