"""Models whose ``forward`` takes ``*args`` or ``**kwargs``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.graph.batches import Signature, split_batch


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        result: Tensor = self.a(x) + self.b(z)
        return result


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Gated(nn.Module):
    """Reads one argument out of ``**kwargs``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor, **extra: Tensor) -> Tensor:
        result: Tensor = self.a(x) * extra["gate"]
        return result


class Joined(nn.Module):
    """Takes any number of tensors, joined for the layer in it: a wrapper by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 8)

    def forward(self, *parts: Tensor) -> Tensor:
        result: Tensor = self.a(torch.cat(parts, 1))
        return result


def pair() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(4, 8), torch.rand(4, 8)


def named() -> dict[str, Tensor]:
    return dict(zip("xz", pair(), strict=True))


LABELS = torch.tensor([0, 1, 2, 1])
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "own": Wrapper,
    "own, twice": lambda model: Wrapper(Wrapper(model)),
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": torch.compile,  # type: ignore[dict-item]
}


@cache
def unwrapped() -> tuple[nn.Module, Tensor]:
    """The model, and what it gives once it is quantized."""
    plain = Two().eval()
    return plain, octavo.quantize(plain, calibration=[pair()], progress=False)(*pair())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("with_labels", [False, True])
def test_wrappers_take_what_the_model_in_them_takes(
    wrap: Callable[[nn.Module], nn.Module], with_labels: bool, tmp_path: Path
) -> None:
    model = wrap(Two().eval()).eval()
    _, expected = unwrapped()
    tuples: Any = (*pair(), LABELS) if with_labels else pair()
    dicts: Any = named() | {"labels": LABELS} if with_labels else named()
    for batch in (tuples, dicts):
        q = octavo.quantize(model, calibration=[batch], progress=False)
        assert torch.equal(q(*pair()), expected)
        assert torch.equal(q(**named()), expected)
        assert octavo.verify(q, [batch]).passed
        q.save(tmp_path / "m.octavo")
        assert torch.equal(octavo.load(tmp_path / "m.octavo")(**named()), expected)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_example_alone_is_taken_as_well(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(Two().eval()).eval()
    plain, _ = unwrapped()
    for example in (pair(), named()):
        q = octavo.quantize(model, example, mode="dynamic", progress=False)
        torch.testing.assert_close(q(*pair()), plain(*pair()), atol=0.05, rtol=0)


@pytest.mark.parametrize("with_labels", [False, True])
def test_any_keywords_get_all_of_a_dict_but_labels(with_labels: bool) -> None:
    model = Gated().eval()
    batch = dict(zip(("x", "gate"), pair(), strict=True))
    data: Any = [batch | {"labels": LABELS} if with_labels else batch]
    q = octavo.quantize(model, calibration=data, progress=False)
    torch.testing.assert_close(q(**batch), model(**batch), atol=0.05, rtol=0)
    row = octavo.compare(model, q, data, rounds=1, progress=False)["fp32"]
    assert (row.metric is not None) is with_labels
    assert octavo.layer_errors(model, q, data, progress=False)


@pytest.mark.parametrize("with_labels", [False, True])
def test_any_arguments_get_all_of_a_tuple_but_labels(with_labels: bool) -> None:
    model = Joined().eval()
    batch: Any = (*pair(), LABELS) if with_labels else pair()
    q = octavo.quantize(model, calibration=[batch], progress=False)
    torch.testing.assert_close(q(*pair()), model(*pair()), atol=0.05, rtol=0)
    row = octavo.compare(model, q, [batch], rounds=1, progress=False)["fp32"]
    assert (row.metric is not None) is with_labels


def test_batches_for_any_arguments() -> None:
    any_args = Signature((), 0, any_args=True)
    x, z = pair()
    assert split_batch((x, z), any_args).args == (x, z)
    split = split_batch([x, z, LABELS], any_args)
    assert (len(split.args), split.labels) == (2, LABELS)
    assert split_batch((LABELS,), any_args).args == (LABELS,)
    ids = torch.zeros(4, 8, dtype=torch.long)
    assert split_batch((x, ids), any_args).args == (x, ids)
    assert Signature.of(Joined()) == any_args
    assert Signature.of(Joined(), ["parts_0", "parts_1"]) == Signature(("parts_0", "parts_1"), 2)
    assert Signature.of(Gated()) == Signature(("x",), 1, any_kwargs=True)
    assert Signature.of(Gated(), ["x", "gate"]) == Signature(("x", "gate"), 1)
    assert Signature.of(Wrapper(Two())) == Signature(("x", "z"), 2)
