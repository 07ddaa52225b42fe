"""Batch norms disappear into the layer before them, and the model's numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from running import run_graph
from torch import Tensor, nn

from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph


def trained(model: nn.Module) -> nn.Module:
    """With statistics and affine parameters as training leaves them, none at its first value."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.track_running_stats:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


class Calls(nn.Module):
    """Submodules and a function that calls them."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def conv(**settings: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **settings)


def checked(model: nn.Module, x: Tensor) -> Graph:
    """The captured graph, which returns what the model does on this and on other batches."""
    graph = capture(trained(model), x)
    for batch in (x, torch.randn(5, *x.shape[1:])):
        with torch.no_grad():
            expected = model(batch)
        torch.testing.assert_close(run_graph(graph, batch), expected, rtol=1e-5, atol=1e-5)
    return graph


def norms(graph: Graph) -> int:
    return sum(node.short_op == "batch_norm" for node in graph.nodes)


IMAGE, SIGNAL, ROW = (2, 4, 6, 6), (2, 4, 9), (2, 4)

FOLDED = {
    "conv2d": (nn.Sequential(conv(), nn.BatchNorm2d(4)), IMAGE),
    "without bias": (nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)), IMAGE),
    "grouped": (nn.Sequential(conv(groups=4), nn.BatchNorm2d(4)), IMAGE),
    "non-affine": (nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)), IMAGE),
    "large epsilon": (nn.Sequential(conv(), nn.BatchNorm2d(4, eps=0.1)), IMAGE),
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), SIGNAL),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4)), (2, 2, 3, 3, 3)),
    "linear": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), ROW),
    "linear without bias": (nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), ROW),
    "behind dropout": (nn.Sequential(conv(), nn.Dropout(), nn.BatchNorm2d(4)), IMAGE),
    "twice": (nn.Sequential(conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)), IMAGE),
}


@pytest.mark.parametrize(("model", "shape"), FOLDED.values(), ids=FOLDED)
def test_folded_exactly(model: nn.Module, shape: tuple[int, ...]) -> None:
    graph = checked(model, torch.randn(shape))
    assert norms(graph) == 0
    layers = [node.name for node in graph.nodes]
    assert set(graph.constants) == {f"{n}.{part}" for n in layers for part in ("weight", "bias")}


shared = conv()
one, other = conv(), conv()
other.weight = one.weight
third, fourth = conv(), conv()
fourth.bias = third.bias

KEPT = {
    # model, input, batch norms that stay
    "shared layer": (
        nn.Sequential(shared, nn.BatchNorm2d(4), shared, nn.BatchNorm2d(4)),
        IMAGE,
        2,
    ),
    "shared weight": (nn.Sequential(one, nn.BatchNorm2d(4), other, nn.BatchNorm2d(4)), IMAGE, 2),
    "shared bias": (nn.Sequential(third, nn.BatchNorm2d(4), fourth), IMAGE, 1),
    "result read again": (
        Calls(lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "result returned": (
        Calls(lambda m, x: (lambda y: (m.bn(y), y))(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "weight returned": (
        Calls(lambda m, x: (m.bn(m.conv(x)), m.conv.weight), conv=conv(), bn=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "bias returned": (
        Calls(lambda m, x: (m.bn(m.conv(x)), m.conv.bias), conv=conv(), bn=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "weight read again": (
        Calls(
            lambda m, x: m.bn(m.conv(x)) + (m.conv.weight * x.mean()).sum(),
            conv=conv(),
            bn=nn.BatchNorm2d(4),
        ),
        IMAGE,
        1,
    ),
    "not directly behind": (nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE, 1),
    "no layer": (nn.Sequential(nn.BatchNorm2d(4), conv()), IMAGE, 1),
    "no statistics": (
        nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
        1,
    ),
    # There axis 1, which a batch norm runs over, is not the linear layer's channels.
    "linear on sequences": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (2, 6, 4), 1),
    "linear on longer sequences": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(7)), (2, 7, 4), 1),
    "computed weight": (
        Calls(
            lambda m, x: m.bn(torch.conv2d(x, m.conv.weight * x.mean(), m.conv.bias)),
            conv=conv(),
            bn=nn.BatchNorm2d(4),
        ),
        IMAGE,
        1,
    ),
}


@pytest.mark.parametrize(("model", "shape", "count"), KEPT.values(), ids=KEPT)
def test_kept_where_folding_would_change_something_else(
    model: nn.Module, shape: tuple[int, ...], count: int
) -> None:
    assert norms(checked(model, torch.randn(shape))) == count


def test_the_models_own_tensors_do_not_change() -> None:
    model = trained(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = capture(model, torch.randn(IMAGE))
    assert not torch.equal(graph.constants["0.weight"], before["0.weight"])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_folded_weight_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0))
    layer, norm = model
    with torch.no_grad():
        layer.weight[:] = torch.tensor([3.0, 5.0]).reshape(2, 1, 1, 1)
        layer.bias[:] = torch.tensor([1.0, 2.0])
        norm.running_mean[:] = torch.tensor([0.5, -1.0])
        norm.running_var[:] = torch.tensor([4.0, 0.25])
        norm.weight[:] = torch.tensor([2.0, 3.0])
        norm.bias[:] = torch.tensor([10.0, 20.0])
    constants = capture(model, torch.randn(2, 1, 3, 3)).constants
    # w * gamma / sqrt(var), (b - mean) * gamma / sqrt(var) + beta
    assert constants["0.weight"].flatten().tolist() == [3.0, 30.0]
    assert constants["0.bias"].tolist() == [10.5, 38.0]
