"""`export_executorch`: a file that is run and compared before it is there."""

from __future__ import annotations

import importlib.util
import json
import sys

import phones
import pytest
import torch
from commands import octavo_command
from torch import nn

import octavo
from octavo.errors import ExportError, InputError, MissingExtra

without = importlib.util.find_spec("executorch") is None
needs_executorch = [
    pytest.mark.sweep,  # a program takes seconds to make
    pytest.mark.skipif(without, reason="executorch is not installed"),
]


def marked(test):
    for mark in needs_executorch:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def q():
    return phones.for_phones(phones.row_net(), phones.ROWS)


@marked
def test_a_file_computes_what_the_oracle_does(q, tmp_path):
    from executorch.runtime import Runtime

    path = tmp_path / "m.pte"
    written = octavo.export_executorch(q, path)
    method = Runtime.get().load_program(path.read_bytes()).load_method("forward")
    x = phones.ROWS[:1]
    torch.testing.assert_close(method.execute([x])[0], q.lower("reference")(x))
    assert written.flash_bytes == path.stat().st_size
    assert written.inputs == {"input": "float32[1, 64]"}
    assert written.fixed == ("N=1",)
    assert (written.share, written.kernels, written.outside) == (1.0, {"XNNPACK linear": 3}, {})
    assert written.agreement is not None
    assert written.agreement.agrees
    assert "100 % of the multiply-adds" in str(written)
    assert written.operators == ()
    assert "needs ExecuTorch's kernels" not in str(written)


@marked
def test_an_app_is_told_of_the_kernels_that_it_has_to_link(tmp_path):
    """A table's integers are read outside of XNNPACK: without these kernels loading fails."""
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 4)).eval()
    q = phones.for_phones(words, torch.randint(0, 50, (4, 6)))
    written = octavo.export_executorch(q, tmp_path / "m.pte")
    assert {"aten::embedding", "quantized_decomposed::dequantize_per_channel"} <= {
        *written.operators
    }
    assert "needs ExecuTorch's kernels of quantized operators" in str(written)


@marked
def test_a_batch_is_asked_for(q, tmp_path):
    written = octavo.export_executorch(q, tmp_path / "m.pte", batch=4)
    assert written.fixed == ("N=4",)


@marked
def test_the_command_writes_it_and_says_what_it_is(q, tmp_path):
    q.save(tmp_path / "m.octavo")
    code, out, _ = octavo_command(
        *("export", tmp_path / "m.octavo", "--out", tmp_path / "m.pte", "--json")
    )
    assert code == 0
    said = json.loads(out)
    assert said["kernels"] == {"XNNPACK linear": 3}
    assert said["size_bytes"] == (tmp_path / "m.pte").stat().st_size


@marked
def test_what_cannot_be_written_leaves_no_file(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(8, 8)

        def forward(self, x):
            return torch.erfinv(torch.tanh(self.line(x)))

    q = phones.for_phones(Net().eval(), torch.randn(4, 8))
    (tmp_path / "m.pte").write_bytes(b"what was there")
    with pytest.raises(ExportError, match="erfinv"):
        octavo.export_executorch(q, tmp_path / "m.pte")
    assert (tmp_path / "m.pte").read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pte"]


@marked
def test_a_file_that_computes_something_else_is_not_written(q, tmp_path, monkeypatch):
    from octavo.runtimes.executorch.programs import LoadedProgram

    run = LoadedProgram.run
    monkeypatch.setattr(LoadedProgram, "run", lambda *how: tuple(1.1 * r for r in run(*how)))
    with pytest.raises(ExportError, match="something else"):
        octavo.export_executorch(q, tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_said_with_what_to_install(q, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    for call in (
        lambda: octavo.export_executorch(q, tmp_path / "m.pte"),
        lambda: q.lower("executorch"),
    ):
        with pytest.raises(MissingExtra, match=r"octavo\[executorch\]"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"batch": 0}, ExportError, "batch=0"),
        ({"batch": 1.5}, InputError, "batch is 1.5: give a whole number"),
        ({"path": 3}, InputError, "path is 3: give a path"),
    ],
)
def test_bad_arguments(q, tmp_path, how, error, words):
    arguments = {"path": tmp_path / "m.pte", **how}
    with pytest.raises(error, match=words):
        octavo.export_executorch(q, **arguments)


def test_a_batch_that_the_model_does_not_take(tmp_path):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(8, 8)

        def forward(self, x):
            return self.line(x).reshape(2, -1)

    q = phones.for_phones(Pairs().eval(), torch.randn(2, 8))
    with pytest.raises(ExportError, match="batch=1"):
        octavo.export_executorch(q, tmp_path / "m.pte")
