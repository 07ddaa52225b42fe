"""What the tests of the export share: a model as ONNX, run beside torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from calling import Call
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from octavo.errors import ExportError
from octavo.graph.graph import Graph


def _module(model: Callable[..., Any]) -> nn.Module:
    return (model if isinstance(model, nn.Module) else Call(model)).eval()


def _with_another(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same call with one more sample."""
    return [torch.cat([tensor, tensor[:1]]) for tensor in tensors]


def _results(model: Any, graph: Graph, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What ONNX Runtime gives for a valid model, operator by operator as they are written."""
    onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = {
        given.name: tensor.numpy() for given, tensor in zip(graph.inputs, tensors, strict=True)
    }
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


@pytest.fixture
def run_onnx() -> Callable[..., list[Tensor]]:
    """Runs the model of a graph on tensors."""
    pytest.importorskip("onnx")
    return _results


@pytest.fixture
def agrees() -> Callable[..., Any]:
    """Exports a module or function, compares it with torch at two batch sizes, gives the model."""
    pytest.importorskip("onnx")

    def check(model: Callable[..., Any], *tensors: Tensor, atol: float = 1e-5) -> Any:
        from octavo.runtimes.onnx.export import to_onnx

        module = _module(model)
        graph = octavo.capture(module, tensors)
        written = to_onnx(graph)
        for call in (tensors, _with_another(tensors)):
            with torch.no_grad():
                expected = pytree.tree_leaves_with_path(module(*call))
            found = _results(written, graph, call)
            for (path, tensor), result in zip(expected, found, strict=True):
                torch.testing.assert_close(
                    result,
                    tensor,
                    atol=atol,
                    rtol=1e-5,
                    equal_nan=True,
                    msg=partial("{}: {}".format, pytree.keystr(path)),
                )
        return written

    return check


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Why a module or function has no ONNX form."""
    pytest.importorskip("onnx")

    def refused(model: Callable[..., Any], *tensors: Tensor) -> str:
        from octavo.runtimes.onnx.export import to_onnx

        graph = octavo.capture(_module(model), tensors)
        with pytest.raises(ExportError) as caught:
            to_onnx(graph)
        return str(caught.value)

    return refused


@pytest.fixture
def names_the_way_out(refusal: Callable[..., str]) -> Callable[..., None]:
    """Whether a refusal says which operator has no form, and what to do."""

    def check(model: Callable[..., Any], way_out: str, *tensors: Tensor) -> None:
        message = refusal(model, *tensors)
        assert way_out in message
        assert "aten." in message

    return check
