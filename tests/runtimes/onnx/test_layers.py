"""Layers with weights, products and normalizations as ONNX: what torch gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.runtimes.onnx.export import to_onnx


class Product(nn.Module):
    """A function of the input and a matrix."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.compute(self, x)


def instance_norm():
    """With running statistics, as a trained network has it."""
    norm = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
    norm.running_mean.normal_()
    return nn.Sequential(nn.ReLU(), norm)


def batch_norm():
    norm = nn.BatchNorm1d(6, affine=False)
    norm.running_mean.normal_()
    return nn.Sequential(nn.ReLU(), norm)


CONVOLUTIONS = {
    "conv": lambda kind, *_: kind(6, 4, 3),
    "strided": lambda kind, *_: kind(6, 4, 3, stride=2, padding=1, bias=False),
    "grouped": lambda kind, *_: kind(6, 6, 2, groups=3, dilation=2),
    "same": lambda kind, *_: kind(6, 4, 4, padding="same"),
    "valid": lambda kind, *_: kind(6, 4, 3, padding="valid"),
    "padded in a circle": lambda kind, *_: kind(6, 4, 3, padding=1, padding_mode="circular"),
    "transposed": lambda _, kind: kind(6, 4, 3, stride=2),
    "transposed to an odd size": lambda _, kind: kind(
        6, 4, 3, stride=2, padding=1, output_padding=1, bias=False
    ),
    "transposed in groups": lambda _, kind: kind(6, 4, 3, dilation=2, groups=2),
}
KINDS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


@pytest.mark.parametrize("dims", KINDS)
def test_convolutions(dims, agrees):
    layers = nn.ModuleDict({name: make(*KINDS[dims]) for name, make in CONVOLUTIONS.items()})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return {name: layer(x) for name, layer in self.layers.items()}

    agrees(Model(), torch.randn(2, 6, *(8, 7, 6)[:dims]))


ON_ROWS = {  # of float32 [N, 5, 6]
    "linear": lambda: nn.Linear(6, 4),
    "linear without bias": lambda: nn.Linear(6, 4, bias=False),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm of two axes": lambda: nn.LayerNorm([5, 6]),
    "layer norm without weights": lambda: nn.LayerNorm([5, 6], elementwise_affine=False),
    "layer norm without bias": lambda: nn.LayerNorm(6, bias=False),
    "rms norm": lambda: nn.RMSNorm(6, eps=1e-5),
    "rms norm of its own precision": lambda: nn.RMSNorm([5, 6], elementwise_affine=False),
    "matmul": lambda: Product(lambda m, x: x @ x.transpose(1, 2)),
    "constant first": lambda: Product(lambda m, x: m.weight[:5, :5] @ x),
    "bmm": lambda: Product(lambda m, x: torch.bmm(x, x.transpose(1, 2))),
    "matrix and vector": lambda: Product(lambda m, x: x @ m.weight[0]),
    "mv": lambda: Product(lambda m, x: torch.mv(x[0], m.bias)),
    "dot": lambda: Product(lambda m, x: torch.dot(x[0, 0], m.bias)),
    "mm": lambda: Product(lambda m, x: torch.mm(x[:, 0], x[0].t())),
    "addmm": lambda: Product(
        lambda m, x: torch.addmm(m.bias, x[:, 0], m.weight, alpha=2.0, beta=0.5)
    ),
    "baddbmm": lambda: Product(
        lambda m, x: torch.baddbmm(m.weight[:5, :5], x, x.transpose(1, 2), alpha=0.5, beta=2)
    ),
    "baddbmm of a product alone": lambda: Product(
        lambda m, x: torch.baddbmm(m.weight[:5, :5], x, x.transpose(1, 2), beta=0)
    ),
    "einsum": lambda: Product(lambda m, x: torch.einsum("bij,jk->bki", x, m.weight)),
    "einsum of three": lambda: Product(
        lambda m, x: torch.einsum("...i,ij,j->...", x, m.weight, m.bias)
    ),
}


@pytest.mark.parametrize("name", ON_ROWS)
def test_layers_of_rows(name, agrees):
    agrees(ON_ROWS[name](), torch.randn(2, 5, 6))


ON_CHANNELS = {  # of float32 [N, 6, 5]
    "batch norm": batch_norm,
    "group norm": lambda: nn.GroupNorm(3, 6),
    "group norm without weights": lambda: nn.GroupNorm(2, 6, affine=False),
    "instance norm": lambda: nn.InstanceNorm1d(6, affine=True),
    "instance norm without weights": lambda: nn.InstanceNorm1d(6),
    "instance norm with statistics": instance_norm,
}


@pytest.mark.parametrize("name", ON_CHANNELS)
def test_normalizations_of_channels(name, agrees):
    agrees(ON_CHANNELS[name](), torch.randn(2, 6, 5))


def test_normalizations_of_images(agrees):
    layers = (nn.GroupNorm(3, 6), nn.ReLU(), nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True))
    agrees(nn.Sequential(*layers), torch.randn(2, 6, 5, 4))


def test_an_embedding_picks_rows(agrees):
    agrees(nn.Embedding(10, 4, padding_idx=0), torch.randint(0, 10, (2, 5)))


def test_a_nan_among_the_factors_of_a_bag_stays_in_it(run_onnx):
    bag = nn.EmbeddingBag(9, 4, mode="sum")
    call = (torch.arange(6), torch.tensor([0, 2, 2]), torch.rand(6))
    graph = octavo.capture(bag, call)
    call[2][1] = torch.nan
    (found,) = run_onnx(to_onnx(graph), graph, call)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], bag(*call)[1:])


def test_a_weight_that_is_computed(agrees):
    model = Product(lambda m, x: nn.functional.linear(x, x[0] @ m.weight, x[0, :, 0]))
    agrees(model, torch.randn(2, 5, 6))
    kernels = Product(lambda m, x: nn.functional.conv1d(x, x[:1, :, :2] + m.bias[:2]))
    agrees(kernels, torch.randn(2, 5, 6))


def test_operators_without_a_converter_are_all_named(refusal):
    message = refusal(
        lambda x: torch.fft.rfft(x).abs() + torch.cdist(x, x)[..., :1], torch.randn(2, 3, 4)
    )
    assert "aten.fft_rfft.default" in message
    assert "aten.cdist" in message
    assert "reference" in message
