"""Operators of shapes as ONNX: what torch gives, at any batch size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

FUNCTIONS = {
    "view": lambda x: x.view(-1, 12, 2),
    "reshape with the batch": lambda x: x.reshape(x.shape[0], -1),
    "reshape joins the batch": lambda x: x.reshape(-1, 6),
    "reshape to two open sizes": lambda x: (
        x.reshape(2 * x.shape[0], 3, -1)[:, :, None]
        .expand(-1, -1, 3, -1)
        .reshape(x.shape[0], 2, 3, -1)
    ),
    "flatten": lambda x: x.flatten(1),
    "flatten all": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(3, (2, 3)),
    "transpose": lambda x: x.transpose(1, -1),
    "transpose the batch": lambda x: x.transpose(0, 2) * 1,
    "permute": lambda x: x.permute(0, 3, -3, 2),
    "matrix transposed": lambda x: x.mT,
    "t": lambda x: x[:, 0, 0].t() + 0,
    "moved": lambda x: x.movedim(1, 3),
    "several moved": lambda x: torch.movedim(x, (1, 2), (3, 1)),
    "swapped": lambda x: x.swapaxes(1, 2),
    "squeeze": lambda x: x[:, :1, :, :1].squeeze(),
    "squeeze an axis": lambda x: x[:, :1].squeeze(1),
    "squeeze what stays": lambda x: x.squeeze(1) + 0,
    "squeeze axes": lambda x: x[:, :1, :, :1].squeeze((1, 3)),
    "unsqueeze": lambda x: x.unsqueeze(-1).unsqueeze(1),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "expand to the batch": lambda x: x[0, :1].expand(x.shape[0], 5, 4, 6),
    "expand as": lambda x: x[:, :1].expand_as(x),
    "broadcast": lambda x: torch.broadcast_to(x[:, :1], x.shape),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat with a new axis": lambda x: x.repeat(2, 1, 1, 3, 1),
    "tile": lambda x: x.tile(2),
    "repeat interleave": lambda x: x.repeat_interleave(3, 1),
    "cat": lambda x: torch.cat([x, x + 1], -1),
    "cat of dtypes": lambda x: torch.cat([x, (9 * x).long()], 1),
    "cat with nothing": lambda x: torch.cat([torch.zeros(0), x], 1),
    "stack": lambda x: torch.stack([x, x + 1], -1),
    "stack in front": lambda x: torch.stack([x, x + 1], 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad with a number": lambda x: F.pad(x, (1, 2), value=-3.0),
    "pad integers": lambda x: F.pad((9 * x).long(), (1, 2)),
    "crop": lambda x: F.pad(x, (-1, -2, 1, 0)),
    "reflected": lambda x: F.pad(x, (2, 1, 1, 1), mode="reflect"),
    "replicated": lambda x: F.pad(x, (2, 1, 1, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
    "reflected rows": lambda x: F.pad(x[:, 0], (2, 1), mode="reflect"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.reshape(-1, 8, 3, 3), 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: F.channel_shuffle(x.reshape(-1, 6, 3, 4), 2),
    "contiguous": lambda x: x.transpose(1, 2).contiguous().view(-1, 4, 18),
}


def test_functions(agrees):
    x = torch.randn(2, 3, 4, 6)
    agrees(lambda x: {name: compute(x) for name, compute in FUNCTIONS.items()}, x)


SIZES = {
    "size": lambda x: x.new_zeros(x.shape[0]),
    "sums": lambda x: x.new_ones(x.shape[0] + 3, 2 * x.shape[0] - 1),
    "quotients": lambda x: x.new_ones((x.shape[0] + 1) // 2),
    "differences rounded down": lambda x: x.new_ones(9 + (1 - x.shape[0]) // 2),
    "largest": lambda x: x.new_ones(max(x.shape[0], 3)),
    "of all values": lambda x: x.new_ones(x.numel()),
}


@pytest.mark.parametrize("name", SIZES)  # together they would fix the size of the batch
def test_arithmetic_on_sizes(name, agrees):
    agrees(SIZES[name], torch.randn(4, 3))


def test_results_are_inputs_constants_and_one_value_twice(agrees):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))

        def forward(self, x):
            y = x + 1
            return x, self.table, y, y, x * self.table

    agrees(Model(), torch.randn(2, 4))


REFUSED = {
    "interleaved by a tensor": (
        lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 1]), 1, output_size=4),
        "along an axis",
    ),
    "one image": (lambda x: F.pixel_shuffle(x.reshape(-1, 2, 4, 3, 3), 2), "batches of images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name, names_the_way_out):
    names_the_way_out(*REFUSED[name], torch.randn(2, 3, 4, 6))
