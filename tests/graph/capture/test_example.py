"""What cannot be captured is one clear error that says what to give instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import octavo
from octavo.errors import CaptureError, InputError

X = torch.rand(8, 16)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: Any) -> Tensor:
        return self.r(x)[1][0]  # type: ignore[no-any-return]


class Packing(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.r(packed)[1][0]  # type: ignore[no-any-return]


PACKED = pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
DATA = r"it is data: give it by its keyword, calibration="

EXAMPLES: dict[str, tuple[Any, str]] = {
    "DataLoader": (DataLoader(TensorDataset(X), 4), f"a DataLoader: {DATA}"),
    "Dataset": (TensorDataset(X), f"a TensorDataset: {DATA}"),
    "generator": ((x for x in [X]), f"a generator: {DATA}"),
    "numpy": (X.numpy(), r"a ndarray: give tensors, torch\.from_numpy"),
    "object": (object(), "an object: give tensors and numbers"),
    "empty batch": (X[:0], "the example has no samples"),
    "two tensors": ([X, X], "too many positional arguments"),
    "nothing": ((), "missing a required argument"),
}


@pytest.mark.parametrize(("example", "message"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_that_are_none(example: Any, message: str) -> None:
    for take in (octavo.quantize, octavo.capture, octavo.prepare_qat):
        with pytest.raises(InputError, match=message):
            take(net(), example)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "traced": (lambda: torch.jit.trace(net(), X), "compiled TorchScript.*start from the nn.Module"),
    "name": (lambda: "resnet18", "the model is 'resnet18', not a torch.nn.Module"),
    "class": (lambda: nn.ReLU, "the model is the class ReLU.*give a model, ReLU"),
    "state dict": (lambda: net().state_dict(), "build the network, and give it the state dict"),
    "on meta": (lambda: nn.Linear(16, 4, device="meta"), "'weight' is on the meta device"),
}


@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS)
def test_models_that_are_none(make: Callable[[], Any], message: str) -> None:
    for take in (octavo.quantize, octavo.capture, octavo.prepare_qat):
        with pytest.raises((InputError, CaptureError), match=message):
            take(make(), X)


def test_packed_sequences_have_a_way_out() -> None:
    message = "(?i)a graph has no packed sequences.*padded tensors"
    for example in (PACKED, (PACKED,), {"x": PACKED}):
        with pytest.raises(InputError, match=message):
            octavo.quantize(Recurrent(), example)
    with pytest.raises(InputError, match=message):
        octavo.quantize(Recurrent(), calibration=[PACKED], mode="dynamic")
    with pytest.raises(CaptureError, match=message):
        octavo.quantize(Packing(), (torch.randn(2, 5, 4), torch.tensor([5, 3])))


def test_inputs_is_a_function() -> None:
    with pytest.raises(InputError, match="inputs is a str: give a function"):
        octavo.quantize(net(), calibration=[X], inputs="x")  # type: ignore[arg-type]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrap", [nn.DataParallel])
def test_wrappers_for_many_devices_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    batches = [(X, X + 1, torch.zeros(8))] * 2  # labels behind the arguments
    target = octavo.host_target()
    plain = octavo.quantize(model, calibration=batches, target=target, progress=False)
    q = octavo.quantize(wrap(model), calibration=batches, target=target, progress=False)
    assert list(q.plan.tensors) == list(plain.plan.tensors)
    assert torch.equal(q(X, X), plain(X, X))
    trained = octavo.prepare_qat(wrap(copy.deepcopy(model)), (X, X))
    assert trained(X, X).requires_grad


class Keywords(nn.Module):
    """Takes some of its arguments by ``**kwargs``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y: Tensor = self.a(x)
        return y * kwargs["scale"] if kwargs.get("scaled", True) and "scale" in kwargs else y


def test_keywords_that_forward_takes_by_kwargs() -> None:
    torch.manual_seed(0)
    model = Keywords().eval()
    scale = torch.full((8, 1), 3.0)
    for call in ({"x": X}, {"x": X, "scale": scale}, {"x": X, "scale": scale, "scaled": False}):
        q = octavo.quantize(model, call, mode="weight_only", progress=False)
        with torch.no_grad():
            torch.testing.assert_close(q(**call), model(**call), rtol=0.02, atol=0.02)
        few = {name: v[:3] if isinstance(v, Tensor) else v for name, v in call.items()}
        assert q(**few).shape == (3, 4)
    with pytest.raises(InputError, match=r"no argument 'other'.*leave it out, or capture"):
        q(**call, other=X)
    assert "forward" not in vars(model)
