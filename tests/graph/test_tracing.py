"""A quantized model inside of torch's compilers and tracers: the right result, or one error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import ExportError, PlanError


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(8, 16)


@pytest.fixture(scope="module")
def q(x: Tensor) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    return octavo.quantize(net, calibration=[x], target=octavo.host_target(), progress=False)


PLACES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda q: q,
    "as a part": lambda q: nn.Sequential(q, nn.Identity()),
}


@pytest.mark.parametrize("place", PLACES)
def test_compiled_it_gives_the_same(q: octavo.QuantizedModel, x: Tensor, place: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(PLACES[place](q))
    with torch.no_grad():
        assert torch.equal(compiled(x), q(x))
        assert torch.equal(compiled(x[:3]), q(x[:3]))


REFUSED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.jit.trace": lambda m, x: torch.jit.trace(m, x),
    "torch.export": lambda m, x: torch.export.export(m, (x,), strict=False),
    "torch.jit.script": lambda m, x: torch.jit.script(m),
    "torch.onnx.export": lambda m, x: torch.onnx.export(m, (x,), "m.onnx", dynamo=False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("by", REFUSED)
def test_others_are_refused_with_the_way_out(
    q: octavo.QuantizedModel,
    x: Tensor,
    by: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = rf"{by} does not take a model that is quantized already: octavo\.export_onnx\(q"
    with pytest.raises(ExportError, match=message):
        REFUSED[by](PLACES[place](q), x)
    assert torch.equal(q(x), q(x))  # as before


@pytest.mark.filterwarnings("ignore")
def test_torchs_new_onnx_export_tells_the_way_out_too(
    q: octavo.QuantizedModel, x: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match=r"octavo\.export_onnx\(q, path\)"):
        torch.onnx.export(q, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    assert not (tmp_path / "m.onnx").exists()


def test_quantized_again_it_is_refused(q: octavo.QuantizedModel, x: Tensor) -> None:
    with pytest.raises(PlanError, match=r"quantized already, at '0': start from the float model"):
        octavo.quantize(nn.Sequential(q, nn.Linear(4, 4)), calibration=[x], progress=False)


def test_a_call_imports_no_compiler(q: octavo.QuantizedModel, tmp_path: Path) -> None:
    q.save(tmp_path / "m.octavo")
    code = (
        "import sys, torch, octavo; before = set(sys.modules)\n"
        f"octavo.load({str(tmp_path / 'm.octavo')!r})(torch.rand(2, 16))\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('torch._inductor')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
