"""Batch norms of a model in training are found and set by code that knows nothing of Octavo."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import octavo
from octavo.qat import QATModel


def net() -> nn.Sequential:
    """A norm that a layer takes in, one that stands alone, and one without parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, affine=False),
    )


def prepared(model: nn.Module) -> QATModel:
    x = torch.randn(4, 3, 6, 6)
    return octavo.prepare_qat(model, x, calibration=[x], progress=False).observe(False)


def batches(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(6, 3, 6, 6) + 0.5 for _ in range(count)]


def norms(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return {path: part for path, part in model.named_modules() if isinstance(part, kinds)}


def test_they_are_of_torchs_kinds_and_keep_their_settings() -> None:
    model = net()
    found = norms(prepared(model))
    assert list(found) == ["1", "3", "6"]
    for path, norm in norms(model).items():
        assert type(found[path]) is type(norm)
        assert repr(found[path]) == repr(norm)
        assert set(found[path].state_dict()) == set(norm.state_dict())
    assert set(prepared(model).state_dict()) >= set(model.state_dict())


def test_one_that_is_set_to_evaluation_is_frozen() -> None:
    """As loops for detection do it, after each ``train()``."""
    qat = prepared(net())
    twin = copy.deepcopy(qat)
    for model in (qat, twin):
        model.train()
    for norm in norms(qat).values():
        norm.eval()
    twin.freeze_batch_norms()
    before = {name: tensor.clone() for name, tensor in qat.named_buffers()}
    (x,) = batches(1)
    found, expected = qat(x), twin(x)
    assert torch.equal(found, expected)
    for name, tensor in qat.named_buffers():
        assert torch.equal(tensor, before[name]), name
    qat.train()
    assert not torch.equal(qat(x), found)
    assert not torch.equal(qat.get_buffer("1.running_mean"), before["1.running_mean"])
    norms(qat)["3"].eval()
    kept = qat.get_buffer("3.running_mean").clone()
    moved = qat.get_buffer("1.running_mean").clone()
    qat(x)
    assert torch.equal(qat.get_buffer("3.running_mean"), kept)
    assert not torch.equal(qat.get_buffer("1.running_mean"), moved)


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_statistics_are_found_anew_as_those_of_a_float_model(momentum: float | None) -> None:
    model = net()
    qat = prepared(model).fake_quantize(False)
    data = batches(3)
    if momentum is None:
        update_bn(data, qat)
        update_bn(data, model.train())
    else:
        for x in data:
            qat.train()(x)
            model.train()(x)
    for name, tensor in model.named_buffers():
        torch.testing.assert_close(qat.get_buffer(name), tensor, rtol=1e-4, atol=1e-5)
    assert int(qat.get_buffer("1.num_batches_tracked")) == 3


def test_names_that_are_not_a_batch_norms_are_held_as_they_are() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.get_buffer("mean"), self.get_buffer("var")
            return nn.functional.batch_norm(self.conv(x), mean, var, training=self.training)

    qat = prepared(Functional())
    assert not norms(qat)
    (x,) = batches(1)
    qat.train()(x)
    assert not torch.equal(qat.get_buffer("mean"), torch.zeros(4))
