"""``fuse_modules`` puts modules where torch.ao put them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as theirs
from compat.networks import FUSED, Net
from torch import nn

import octavo
import octavo.compat.quantization as ours
from octavo.compat.quantization.fuse_modules import _PATTERNS


def test_the_model_computes_the_same_and_looks_the_same() -> None:
    net = Net()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.3, 0.3)
    net(torch.randn(8, 1, 14, 14))
    net.eval()
    x = torch.randn(4, 1, 14, 14)
    mine, other = ours.fuse_modules(net, FUSED), theirs.fuse_modules(net, FUSED)
    torch.testing.assert_close(mine(x), net(x))
    assert [n for n, _ in mine.named_modules()] == [n for n, _ in other.named_modules()]
    kinds = [type(m).__name__ for m in mine.modules()]
    assert kinds == [type(m).__name__ for m in other.modules()]
    assert set(mine.state_dict()) == set(other.state_dict())
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name])
    assert isinstance(net.bn1, nn.BatchNorm2d)  # the model itself is left as it was


def test_in_place_and_for_training() -> None:
    net = Net().train()
    assert ours.fuse_modules_qat(net, FUSED, inplace=True) is net
    assert type(net.conv1).__name__ == "ConvBnReLU2d"
    assert isinstance(net.bn1, nn.Identity)
    assert net.conv1.training
    sequence = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    ours.fuse_modules(sequence, ["0", "1"], inplace=True)
    assert type(sequence[0]).__name__ == "LinearReLU"


@pytest.mark.parametrize("kinds", list(_PATTERNS), ids="+".join)
def test_every_pattern_folds_in_evaluation(kinds: tuple[str, ...]) -> None:
    made = nn.Sequential(*map(_layer, kinds))
    dims = next((int(k[-2]) for k in kinds if k[-1] == "d" and k[-2].isdigit()), 1)
    flat = kinds[0] == "Linear"
    x = torch.randn(8, 4) if flat else torch.randn(8, 4, *[5] * dims)
    made(x)  # for the running statistics
    made.eval()
    fused = ours.fuse_modules(made, [str(i) for i in range(len(kinds))])
    torch.testing.assert_close(fused(x), made(x))


def _layer(kind: str) -> nn.Module:
    if kind == "ReLU":
        return nn.ReLU()
    if kind == "Linear":
        return nn.Linear(4, 4)
    if kind.startswith("BN"):
        norm: nn.Module = getattr(nn, f"BatchNorm{kind[2:]}")(4)
        return norm
    layer: nn.Module = getattr(nn, kind)(4, 4, 3)
    return layer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["conv1", "bn9"], r"no module 'bn9' to fuse; it has \['conv1'"),
        (["conv1", "maxpool"], r"Conv2d \+ MaxPool2d, which fuse_modules does not know"),
        (["conv1", "bn1"], r"call model.eval\(\) before fuse_modules"),
    ],
)
def test_what_does_not_fuse(row: list[str], message: str) -> None:
    with pytest.raises(octavo.OctavoError, match=message):
        ours.fuse_modules(Net().train(), row)


def test_own_fusers_are_not_shared() -> None:
    own: Any = object()
    with pytest.raises(octavo.OctavoError, match="argument fuser_func: Octavo fuses"):
        ours.fuse_modules(Net(), FUSED, fuser_func=own)


def test_the_outer_hooks_are_the_fused_modules() -> None:
    model, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval(), []
    model[0].register_forward_pre_hook(lambda *args: seen.append("before"))
    model[2].register_forward_hook(lambda *args: seen.append("after"))
    for fuse in (ours.fuse_modules, ours.fuse_modules_qat):
        seen.clear()
        fuse(model, ["0", "1", "2"])(torch.rand(1, 1, 4, 4))
        assert seen == ["before", "after"]
