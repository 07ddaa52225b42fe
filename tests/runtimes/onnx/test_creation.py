"""Tensors made of numbers as ONNX: what torch gives, at any batch size."""

from __future__ import annotations

import torch

FUNCTIONS = {
    "zeros": lambda x: torch.zeros(x.shape[0], 3),
    "ones of integers": lambda x: torch.ones(x.shape[0], 3, dtype=torch.int64),
    "full": lambda x: torch.full((x.shape[0], 2), 1.5),
    "full of truths": lambda x: torch.full((x.shape[0], 2), True),
    "full of a tensor": lambda x: x.new_ones(x.shape).fill_(x.sum()),
    "zeros like": lambda x: torch.zeros_like(x),
    "ones like": lambda x: torch.ones_like(x, dtype=torch.bool),
    "full like": lambda x: torch.full_like(x, -2.0),
    "new zeros": lambda x: x.new_zeros(x.shape[0], 1),
    "new full": lambda x: x.new_full((x.shape[0], 4), 3.0),
    "of a fixed size": lambda x: x + x.new_ones(4),
    "arange": lambda x: torch.arange(x.shape[0]),
    "arange of floats": lambda x: torch.arange(0, x.shape[0], dtype=torch.float32),
    "arange in steps": lambda x: torch.arange(1, x.shape[0] + 5, 2),
    "scalar": lambda x: x + torch.ops.aten.scalar_tensor(x.shape[0]),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "tril of truths": lambda x: (x > 0).tril(-1),
    "triu of integers": lambda x: (9 * x).long().triu(),
}


def test_functions(agrees):
    x = torch.randn(2, 4)
    agrees(lambda x: {name: compute(x) for name, compute in FUNCTIONS.items()}, x)
