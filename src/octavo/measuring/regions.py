"""The regions of a model, and what they are called with when the whole model runs.

Tested in tests/measuring/test_regions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from octavo.errors import InputError
from octavo.flow.running import Call
from octavo.flow.watching import hooked
from octavo.graph.batches import Batch, Signature, split_batch
from octavo.graph.evaluation import evaluating
from octavo.model.model import QuantizedModel
from octavo.model.parts import regions_of
from octavo.quantization.plan import Plan, TensorPlan


def graphs_in(q: object) -> dict[str, QuantizedModel]:
    """The graphs of a model, by their paths: its regions, or all of it, at the path ``""``."""
    return {"": q} if isinstance(q, QuantizedModel) else regions_in(q)


def named(path: str, name: str) -> str:
    """What a layer or tensor of the graph at a path is called in the model."""
    return f"{path}.{name}" if path else name


def plan_of(graphs: Mapping[str, QuantizedModel]) -> Plan:
    """The plans of a model's graphs as one, with the names that tensors have in the model.

    Args:
        graphs: of `graphs_in`.
    """
    first = next(iter(graphs.values())).plan
    tensors = (_named(path, t) for path, q in graphs.items() for t in q.plan.tensors.values())
    return replace(first, tensors={t.tensor: t for t in tensors}, unmatched=())


def _named(path: str, planned: TensorPlan) -> TensorPlan:
    shares, into = planned.shares, planned.fused_into
    return replace(
        planned,
        tensor=named(path, planned.tensor),
        shares=None if shares is None else named(path, shares),
        fused_into=None if into is None else named(path, into),
    )


def regions_in(q: object) -> dict[str, QuantizedModel]:
    """The regions of a model of the user's class; none of what is one graph, or not quantized."""
    if isinstance(q, QuantizedModel) or not isinstance(q, nn.Module):
        return {}
    return regions_of(q)


def calls_of(
    model: nn.Module,
    regions: Mapping[str, QuantizedModel],
    data: Iterable[Any],
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run a model, float or quantized, and note what its regions are called with.

    Returns:
        The arguments of each call, by their names, for each region by its path.

    Raises:
        InputError: one of them is never called.
    """
    signature = Signature.of(model)
    calls = calls_in(model, regions, (split_batch(batch, signature, inputs) for batch in data))
    silent = next((path for path, told in calls.items() if not told), None)
    if silent is not None:
        raise InputError(f"the region {silent!r} is not called on this data: give other batches")
    return calls


def calls_in(
    model: nn.Module, regions: Mapping[str, QuantizedModel], batches: Iterable[Batch]
) -> dict[str, list[dict[str, Any]]]:
    """The same of batches that were read; nothing for a region that none of them calls."""
    names = {path: list(region.graph.arguments) for path, region in regions.items()}
    calls: dict[str, list[dict[str, Any]]] = {path: [] for path in regions}

    def tell(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path].append(dict(zip(names[path], args, strict=False)) | kwargs)

    modules = {path: model.get_submodule(path) for path in regions}
    with torch.no_grad(), evaluating(model), hooked(modules, tell):
        for batch in batches:
            Call(batch)(model)
    return calls
