"""Guards in an ONNX file: a call outside of them fails there, in both runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

SIZES = range(1, 10)


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.a = function, nn.Linear(8, 8)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self.a, *tensors)


def special(a: nn.Module, x: Tensor) -> Tensor:
    return a(x) * 3 if x.shape[0] == 1 else a(x)  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[..., Any], set[int]]] = {
    "fixed": (lambda a, x: a(x) + torch.zeros(len(x), 8), {4}),
    "even": (lambda a, x: F.relu(a(x)) if x.shape[0] % 2 == 0 else a(x), {2, 4, 6, 8}),
    "above": (lambda a, x: F.relu(a(x)) if x.shape[0] > 3 else a(x), set(range(4, 10))),
    "below": (lambda a, x: F.relu(a(x)) if x.shape[0] < 6 else a(x), set(range(1, 6))),
    "not one size": (lambda a, x: a(x) if x.shape[0] != 6 else x, set(SIZES) - {6}),
    "one is another": (special, set(SIZES) - {1}),
    "halves": (lambda a, x: a(x).reshape(2, x.shape[0] // 2, 8), {2, 4, 6, 8}),
    "free": (lambda a, x: a(x), set(SIZES)),
}


def written(model: nn.Module, example: Any, folder: Path) -> str:
    q = octavo.quantize(model, example, mode="weight_only", progress=False)
    octavo.export_onnx(q, folder / "model.onnx")
    return str(folder / "model.onnx")


def runs(path: str) -> dict[str, Callable[..., list[Any]]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    names = [given.name for given in session.get_inputs()]
    compiled = openvino.Core().compile_model(path, "CPU")

    def with_onnxruntime(*tensors: Tensor) -> list[Any]:
        given = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return session.run(None, given)  # type: ignore[no-any-return]

    def with_openvino(*tensors: Tensor) -> list[Any]:
        return list(compiled([tensor.numpy() for tensor in tensors]).values())

    return {"onnxruntime": with_onnxruntime, "openvino": with_openvino}


@pytest.mark.parametrize(("function", "sizes"), CASES.values(), ids=CASES)
def test_a_file_fails_where_it_would_be_wrong(
    function: Callable[..., Any], sizes: set[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Net(function).eval()
    for run in runs(written(model, torch.randn(4, 8), tmp_path)).values():
        taken = set()
        for size in SIZES:
            x = torch.randn(size, 8)
            try:
                (found,) = run(x)
            except Exception:  # noqa: BLE001  (each runtime has its own)
                continue
            taken.add(size)
            with torch.no_grad():
                expected = model(x)
            torch.testing.assert_close(torch.tensor(found), expected, rtol=0.02, atol=0.05)
        assert taken == sizes


def test_a_guard_on_two_inputs_and_none(tmp_path: Path) -> None:
    model = Net(lambda a, x, y: a(x) if x.shape[0] >= y.shape[0] else a(x) * 2).eval()
    path = written(model, (torch.randn(4, 8), torch.randn(4, 8)), tmp_path)
    for run in runs(path).values():
        assert run(torch.randn(3, 8), torch.randn(2, 8))[0].shape == (3, 8)
        with pytest.raises(Exception, match=r"(?i)split"):
            run(torch.randn(2, 8), torch.randn(3, 8))
    free = onnx.load(written(Net(lambda a, x: a(x)), torch.randn(4, 8), tmp_path))
    assert not {"Split", "Shape"} & {node.op_type for node in free.graph.node}


class Squeezed(nn.Module):
    """One score a sample, as ``x.squeeze()`` gives it: of one sample a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze()


def test_squeeze_refuses_a_batch_of_one_or_has_no_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = octavo.quantize(Squeezed(), torch.randn(4, 8), progress=False)
    lowered = q.lower("onnxruntime")
    for batch, shape in ((2, (2,)), (5, (5,))):
        assert lowered(torch.randn(batch, 8)).shape == shape
    assert q(torch.randn(1, 8)).shape == ()
    with pytest.raises(octavo.OctavoError, match="ONNX Runtime cannot run these inputs"):
        lowered(torch.randn(1, 8))
    octavo.export_onnx(q, tmp_path / "m.onnx")
    with pytest.raises(octavo.OctavoError, match=r"'squeeze' has no ONNX form.*x.squeeze\(1\)"):
        q.lower("openvino")
