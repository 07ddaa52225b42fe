"""`bench`: what stands in the table, and what is a row with a reason."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import InputError, RuntimeUnavailable
from octavo.measuring.cold_start import ColdStart, cold_start

SHAPE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "m.octavo"
    x = torch.randn(SHAPE)
    octavo.quantize(net, x, calibration=[x], target="x86-avx2", progress=False).save(path)
    return path


@pytest.mark.sweep
def test_every_contender_at_every_batch_size(file):
    runtimes = ["torch", "onnxruntime", "openvino"]
    found = octavo.bench(
        file, batches=[1, 3], runtimes=runtimes, seconds=0.1, threads=1, progress=False
    )
    names = [row.name for row in found.rows]
    known = [f"int8 {runtime}, batch known" for runtime in runtimes[1:]]
    assert names == ["fp32", "bf16", *(f"int8 {runtime}" for runtime in runtimes), *known]
    for row in found.rows:
        assert not row.error
        assert sorted(row.latency_ms) == [1, 3]
        assert min(row.latency_ms.values()) > 0
        assert row.throughput(3) == pytest.approx(3e3 / row.latency_ms[3])
        assert (row.load_s is None) == (row.name in ("fp32", "bf16", *known))
    assert found.fastest(1) in names
    assert found.threads == 1
    torch_row = found.rows[2]
    assert torch_row.integers == "100 %"
    assert torch_row.memory_mb > 0


def test_what_cannot_run_is_a_row(file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    start = ColdStart(0.5, 10.0)  # the test above measures real ones
    module = import_module("octavo.measuring.bench")  # octavo.bench itself is the function
    monkeypatch.setattr(module, "cold_start", lambda *args, **options: start)
    found = octavo.bench(
        file, batches=[1], runtimes=["torch", "openvino", "nope"], seconds=0.1, progress=False
    )
    errors = {row.name: row.error for row in found.rows}
    assert errors["int8 torch"] == ""
    assert "octavo[openvino]" in errors["int8 openvino"]
    assert "there is no runtime 'nope'" in errors["int8 nope"]
    for shown in (str(found), found._repr_html_(), found.to_markdown()):
        assert "int8 nope could not run: there is no runtime" in shown
    rows = {row["contender"]: row for row in found.table().to_dicts()}
    assert rows["int8 torch"]["ms at 1"] == f"{found.rows[2].latency_ms[1]:.2f}"
    assert (rows["int8 torch"]["load s"], rows["int8 nope"]["ms at 1"]) == ("0.50", "-")


@pytest.mark.parametrize("batches", [[], [0], [4, -1]])
def test_batch_sizes_are_one_or_more(file, batches):
    with pytest.raises(InputError, match="batches="):
        octavo.bench(file, batches=batches)


def test_a_cold_start_that_fails_says_why(file):
    with pytest.raises(RuntimeUnavailable, match=r"nope: .*there is no runtime"):
        cold_start(file, "nope")
