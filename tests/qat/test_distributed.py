"""Two processes with half of the data each know what one with all of it knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qat import distributed_training as training
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

import octavo
from octavo.errors import CalibrationError

_LOW, _HIGH = "fake_quantizers.input.low", "fake_quantizers.input.high"

Found = dict[str, list[dict[str, Tensor]]]

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two processes wrote, by name."""
    out = tmp_path_factory.mktemp("distributed")
    sources = Path(octavo.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(sources)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", training.__file__, str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=out, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names = ("extrema", "learned", "norms", "calibrated", "refused first", "refused last")
    return {
        name: [load_file(out / f"{name}.{rank}.safetensors") for rank in range(2)] for name in names
    }


def _assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.sweep
def test_each_process_sees_the_extrema_of_all(found: Found) -> None:
    _assert_same(*found["extrema"])
    expected = training.with_extrema(training.batches(), False)
    ranges = [name for name in expected if name.endswith((".low", ".high"))]
    assert len(ranges) >= 4
    for name in ranges:
        # A product of matrices of another size may sum in another order.
        torch.testing.assert_close(
            found["extrema"][0][name], expected[name], rtol=1e-5, atol=1e-5, msg=name
        )
    for rank in range(2):  # which no process alone could have known
        half = [x.chunk(2)[rank] for x in training.batches()]
        alone = training.with_extrema(half, False)
        assert not torch.allclose(alone[_LOW], expected[_LOW]) or rank == 0
        assert not torch.allclose(alone[_HIGH], expected[_HIGH]) or rank == 1


def test_learned_scales_stay_the_same_in_all(found: Found) -> None:
    first, second = found["learned"]
    _assert_same(first, second)
    scales = [name for name in first if name.endswith("scale") and not name.startswith("first.")]
    assert len(scales) >= 4
    assert all(not torch.equal(first[name], first[f"first.{name}"]) for name in scales)
    expected = training.with_learned_scales(training.batches(), False)
    for name in scales:  # from where calibration on all of the data starts
        torch.testing.assert_close(
            first[f"first.{name}"], expected[f"first.{name}"], rtol=1e-5, atol=1e-7
        )


def test_batch_norms_have_one_set_of_statistics(found: Found) -> None:
    """So that each process converts the same model."""
    first, second = found["norms"]
    _assert_same(first, second)
    expected = training.with_batch_norms(training.batches(), False)
    assert first.keys() == expected.keys()
    mean, variance = "0.1.running_mean", "0.1.running_var"
    torch.testing.assert_close(first[mean], expected[mean], rtol=1e-5, atol=1e-6)
    # Of each process's own batch, which spreads less around its own mean.
    assert (first[variance] < expected[variance]).all()


def test_calibration_is_of_all_data_in_each(found: Found) -> None:
    first, second = found["calibrated"]
    _assert_same(first, second)
    assert first.pop("batches").item() == 2 * training.STEPS
    expected = training.calibrated(training.batches(), False)
    assert expected.pop("batches").item() == training.STEPS
    assert first.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_nan_in_one_process_stops_all(found: Found, which: str) -> None:
    """One that went on alone would wait for the other's gradients for ever."""
    assert [bool(each["refused"]) for each in found[f"refused {which}"]] == [True, True]


def test_without_a_process_group_there_are_no_others() -> None:
    message = r"needs a process group: start the script with torchrun.*init_process_group"
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    graph = octavo.capture(net, x)
    with pytest.raises(CalibrationError, match=message):
        octavo.calibrate(graph, octavo.plan(graph), [x], distributed=True)
    with pytest.raises(CalibrationError, match=message):
        octavo.prepare_qat(net, x, calibration=[x], distributed=True)
