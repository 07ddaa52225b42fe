"""Reductions and orders as ONNX: what torch gives, at any batch size."""

from __future__ import annotations

import math

import pytest
import torch

FUNCTIONS = {
    "sum": lambda x: x.sum(),
    "sum of axes": lambda x: x.sum((1, -1)),
    "sum over the batch": lambda x: x.sum(0),
    "sum kept": lambda x: x.sum(1, keepdim=True),
    "sum of truths": lambda x: (x > 0).sum(-1),
    "mean": lambda x: x.mean((1, 2), keepdim=True),
    "mean of all": lambda x: x.mean(),
    "product": lambda x: x.prod(1),
    "product of all": lambda x: x[:1].prod(),
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(-1, keepdim=True),
    "log of sums": lambda x: x.logsumexp(-1),
    "var": lambda x: x.var(-1),
    "var of the sample": lambda x: x.var((1, 2), unbiased=False, keepdim=True),
    "var corrected": lambda x: torch.var(x, 2, correction=2),
    "std": lambda x: x.std(1),
    "var and mean": lambda x: list(torch.var_mean(x, -1)),
    "var and mean kept": lambda x: list(torch.var_mean(x, -1, keepdim=True)),
    "std and mean": lambda x: list(torch.std_mean(x, 1)),
    "norm": lambda x: x.norm(dim=-1),
    "norm of all": lambda x: torch.linalg.vector_norm(x),
    "norm 1": lambda x: x.norm(p=1, dim=1, keepdim=True),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, dim=-1),
    "largest norm": lambda x: torch.linalg.vector_norm(x, math.inf, dim=-1),
    "least norm": lambda x: torch.linalg.vector_norm(x, -math.inf, dim=-1),
    "normalized": lambda x: torch.nn.functional.normalize(x, dim=1),
    "argmax": lambda x: x.argmax(-1),
    "argmax of all": lambda x: x.argmax(),
    "argmin kept": lambda x: x.argmin(1, keepdim=True),
    "max": lambda x: x.max(),
    "min of two": lambda x: torch.min(x, x.flip(1)),
    "max along": lambda x: list(x.max(-1)),
    "min along": lambda x: list(x.min(1, keepdim=True)),
    "any": lambda x: (x > 1).any(),
    "any along": lambda x: (x > 1).any(-1),
    "all kept": lambda x: (x > -1).all(1, keepdim=True),
    "any number": lambda x: x.relu().any(1),
    "cumsum": lambda x: x.cumsum(-1),
    "cumsum of truths": lambda x: (x > 0).cumsum(1),
    "topk": lambda x: list(x.topk(3)),
    "least k": lambda x: list(x.topk(2, 1, largest=False)),
    "sort": lambda x: list(x.sort(-1)),
    "sort down": lambda x: list(x.sort(1, descending=True)),
    "sort the batch": lambda x: x.sort(0)[0],
    "variance of the batch": lambda x: x.var(0),
    "argsort": lambda x: x.argsort(-1),
}


def test_functions(agrees):
    x = torch.randn(2, 3, 5)
    agrees(lambda x: {name: compute(x) for name, compute in FUNCTIONS.items()}, x)


REFUSED = {
    "count": (lambda x: torch.linalg.vector_norm(x, 0, dim=-1), "x != 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name, names_the_way_out):
    names_the_way_out(*REFUSED[name], torch.randn(2, 3, 5))
