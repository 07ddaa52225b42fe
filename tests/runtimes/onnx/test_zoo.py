"""Networks of the zoo as ONNX, float and quantized: what Octavo's own arithmetic gives."""

from __future__ import annotations

import pytest
import torch
import zoo
from capturing import captured_as
from torch import Tensor
from torch.utils import _pytree as pytree

import octavo
from benchmarks import reach
from octavo.graph.calls import flatten_call
from octavo.graph.capture.torch_export import as_records

CAPTURED, RUN = 2, (2, 3)  # batch sizes
# As different from each other as possible, and quick to capture.
NETWORKS = "lstm transformer_encoder_padded squeezenet1_1 whisper".split()


def deviation(found: list[Tensor], expected: object) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    tensors = [t for t in pytree.tree_leaves(as_records(expected)) if isinstance(t, Tensor)]
    return max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, tensors, strict=True)
    )


@pytest.mark.sweep
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_as_onnx(name, run_onnx):
    from octavo.runtimes.onnx.dialect import Dialect
    from octavo.runtimes.onnx.export import to_onnx

    entry = zoo.BY_NAME[name]
    pytest.importorskip(entry.family)
    model = entry.build()
    args, kwargs = reach.call(entry, CAPTURED, seed=0)
    graph = octavo.capture(model, args, kwargs)
    with captured_as(graph):
        q = reach.quantized(entry, model, graph, "dynamic", "onnxruntime").lower("reference")
    # As floats: processors without instructions for eight bits saturate products of integers.
    dialect = Dialect(integer_products=False)
    for batch in RUN:
        args, kwargs = reach.call(entry, batch, seed=batch)
        # A value between two integers may become either.
        for network, source, bound in ((model, graph, 1e-4), (q, q.graph, 0.03)):
            with torch.no_grad():
                expected = network(*args, **kwargs)
            found = run_onnx(to_onnx(source, dialect), source, flatten_call(source, args, kwargs))
            assert deviation(found, expected) < bound
