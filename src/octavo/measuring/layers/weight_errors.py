"""What rounding does to weights, by themselves: no data is needed.

Tested in tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.measuring.layers.error_sums import ErrorSums
from octavo.measuring.layers.error_table import LayerError
from octavo.model.model import QuantizedModel
from octavo.model.origin import rounded_weight
from octavo.numerics.scheme import Scheme


def weight_errors(float_graph: Graph, q: QuantizedModel) -> dict[str, LayerError]:
    """The errors of all weights of a graph, by name."""
    errors = {}
    for name, planned in q.plan.quantized.items():
        if planned.kind != "weight":
            continue
        assert planned.spec is not None
        stored = rounded_weight(q, name)
        step, zero_point = stored.parameters()
        errors[name] = weight_error(
            name,
            planned.op,
            planned.spec.scheme,
            exact=float_graph.constants[name].float(),
            rounded=stored.floats(),
            step=step,
            shifted=stored.integers - zero_point,
        )
    return errors


def weight_error(
    name: str,
    op: str,
    scheme: Scheme,
    *,
    exact: Tensor,
    rounded: Tensor,
    step: Tensor,
    shifted: Tensor,
) -> LayerError:
    """That of one weight.

    Args:
        name, op: as the row has them.
        scheme: of the integers.
        exact, rounded: float32, of the weight's shape.
        step: between two integers, of a shape that expands to the weight's.
        shifted: the integers minus the zero points.
    """
    sums = ErrorSums()
    sums.update(exact, rounded)
    seen = tuple(map(float, torch.aminmax(exact)))
    used = tuple(map(int, torch.aminmax(shifted)))
    # What lies beyond the integers is moved by more than rounding moves anything: half a step.
    clipped = ((exact - rounded).abs() > 0.51 * step).float().mean()
    return LayerError(
        tensor=name,
        kind="weight",
        op=op,
        values=str(scheme),
        sqnr_db=sums.sqnr_db,
        accumulated_sqnr_db=None,
        mse=sums.mse,
        cosine=sums.cosine,
        low=seen[0],
        high=seen[1],
        clipped=float(clipped),
        unused=unused_share(used, scheme),
    )


def unused_share(integers: tuple[int, ...], scheme: Scheme) -> float:
    """The share of a scheme's integers that are beyond the lowest and the highest in use."""
    return max(0.0, 1.0 - (integers[1] - integers[0]) / (scheme.qmax - scheme.qmin))
