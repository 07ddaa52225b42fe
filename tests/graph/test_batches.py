"""How a batch of a user's data becomes a call."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from octavo.errors import InputError
from octavo.graph.batches import Batch, Signature, split_batch, with_floats
from octavo.graph.pixels import Pixels

X, Y, Z = torch.zeros(2, 3), torch.ones(2), torch.ones(2, 4)
ONE = Signature(("x",), 1)
TWO = Signature(("x", "mask", "scale"), 2)
Sample = namedtuple("Sample", "image label")


def test_a_signature_counts_what_has_no_default() -> None:
    class Many(nn.Module):
        def forward(self, x: Any, /, mask: Any, s: float = 1.0, *rest: Any, k: Any, **more: Any):
            pass

    class Nothing(nn.Module):
        def forward(self) -> None:
            pass

    names = ("x", "mask", "s", "k")
    assert Signature.of(Many()) == Signature(names, 2, any_args=True, any_kwargs=True)
    assert Signature.of(nn.Conv2d(1, 1, 1)) == Signature(("input",), 1)
    assert Signature.of(Nothing()) == Signature((), 0)


def test_what_is_no_module_has_none() -> None:
    with pytest.raises(
        InputError, match=r"the model is an OrderedDict, not a torch.nn.Module: build"
    ):
        Signature.of(nn.Linear(2, 2).state_dict())


SPLITS = [
    (X, ONE, (X,), {}, None),
    ((X,), ONE, (X,), {}, None),
    ((X, Y), ONE, (X,), {}, Y),
    ([X, Y], ONE, (X,), {}, Y),
    (Sample(X, Y), ONE, (X,), {}, Y),
    ((X, Y, Z), ONE, (X,), {}, Y),
    ((X, Y), TWO, (X, Y), {}, None),
    ((X, Y, Z), TWO, (X, Y), {}, Z),
    ((X, Y), Signature(("x",), 0), (X,), {}, Y),
    ({"x": X}, ONE, (), {"x": X}, None),
    ({"x": X, "labels": Y}, ONE, (), {"x": X}, Y),
    ({"target": Y, "x": X, "other": Z}, ONE, (), {"x": X}, Y),
    ({"scale": Z, "x": X}, TWO, (), {"x": X, "scale": Z}, None),
    # A model that computes its own loss takes the labels as an argument.
    ({"x": X, "labels": Y}, Signature(("x", "labels"), 1), (), {"x": X, "labels": Y}, None),
    (UserDict({"x": X, "y": Y}), ONE, (), {"x": X}, Y),
]


@pytest.mark.parametrize(("batch", "signature", "args", "kwargs", "labels"), SPLITS)
def test_batches_are_split(
    batch: Any, signature: Signature, args: tuple, kwargs: dict, labels: Any
) -> None:
    split = split_batch(batch, signature)
    assert (len(split.args), list(split.kwargs)) == (len(args), list(kwargs))
    assert all(one is other for one, other in zip(split.args, args, strict=True))
    assert all(split.kwargs[name] is kwargs[name] for name in kwargs)
    assert split.labels is labels


CHOICES = [
    (X, lambda batch: batch, (X,), {}, None),
    ((X, Y), lambda batch: batch[0], (X,), {}, Y),
    ((X, Y, Z), lambda batch: (batch[0], batch[2]), (X, Z), {}, Y),
    ((X, Y), lambda batch: [batch[0]], (X,), {}, Y),
    ((X, Y), lambda batch: {"x": batch[0]}, (), {"x": X}, Y),
    # What the default reading would refuse is no error where the user chose.
    ({"image": X, "label": Y}, lambda batch: batch["image"], (X,), {}, Y),
    ([{"image": X}], lambda batch: batch[0]["image"], (X,), {}, None),
    ("a file name", lambda batch: X, (X,), {}, None),
]


@pytest.mark.parametrize(("batch", "inputs", "args", "kwargs", "labels"), CHOICES)
def test_the_user_chooses_the_arguments(
    batch: Any, inputs: Any, args: tuple, kwargs: dict, labels: Any
) -> None:
    split = split_batch(batch, ONE, inputs)
    assert isinstance(split, Batch)
    assert [id(a) for a in split.args] == [id(a) for a in args]
    assert {name: id(value) for name, value in split.kwargs.items()} == {
        name: id(value) for name, value in kwargs.items()
    }
    assert split.labels is labels


@pytest.mark.parametrize(
    ("batch", "signature", "message"),
    [
        ("text", ONE, "a batch is 'text': give a tensor, a tuple or list, or a dict"),
        (None, ONE, "a batch is None"),
        (5, ONE, "a batch is 5"),
        ((), ONE, r"the batch has 0 items, the model needs 1 arguments \(x\)"),
        ((X,), TWO, r"the batch has 1 items, the model needs 2 arguments \(x, mask\)"),
        (
            {"image": X},
            ONE,
            r"has the keys \['image'\], the model takes \['x'\]: none of them match",
        ),
        ({}, ONE, "none of them match"),
        ({1: X}, ONE, r"has the keys \['1'\]"),
    ],
)
def test_a_batch_that_does_not_fit_names_the_way_out(
    batch: Any, signature: Signature, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        split_batch(batch, signature)
    assert "inputs=lambda batch:" in str(caught.value)


def test_floats_of_the_first_image_that_is_pixels():
    pixels = Pixels(1.0, (1.0,), (2.0,))
    x, floats = torch.full((1, 3, 2, 2), 5, dtype=torch.uint8), torch.zeros(1, 3, 2, 2)
    ids = torch.zeros(1, 4, dtype=torch.uint8)
    call = with_floats(Batch((ids,), {"a": x, "b": x}, "labels"), pixels)
    assert call.args[0] is ids
    assert call.kwargs["a"].unique().tolist() == [2.0]
    assert call.kwargs["b"] is x
    assert call.labels == "labels"
    for left in (Batch((floats, x), {}), Batch((ids,), {})):
        assert with_floats(left, pixels) is left
    whole = Batch((x,), {})
    assert with_floats(whole, None) is whole


class Classifier(nn.Module):
    """As those of transformers: it makes a loss where it is given labels."""

    def forward(self, x: Any, labels: Any = None, start_positions: Any = None, y: Any = None):
        return x


def test_arguments_that_take_labels_are_left_out_of_the_call() -> None:
    signature = Signature.of(Classifier())
    assert signature == Signature(("x", "y"), 1)
    assert split_batch({"x": X, "labels": Y}, signature) == Batch((), {"x": X}, Y)
    both = split_batch({"x": X, "labels": Y, "start_positions": Z}, signature)
    assert both == Batch((), {"x": X}, {"labels": Y, "start_positions": Z})


def test_labels_that_were_captured_are_arguments() -> None:
    signature = Signature.of(Classifier(), captured=("x", "labels"))
    assert signature == Signature(("x", "labels", "y"), 2)
    assert split_batch({"x": X, "labels": Y}, signature) == Batch((), {"x": X, "labels": Y})


def test_a_captured_model_needs_what_it_was_captured_with() -> None:
    class Masked(nn.Module):
        def forward(self, x: Any, mask: Any = None, scale: Any = None, *, key: Any = None) -> None:
            pass

    captured = ("x", "mask", "key")
    assert [Signature.of(Masked(), captured[:n]).required for n in range(4)] == [1, 1, 2, 2]
    signature = Signature.of(Masked(), captured)
    assert split_batch((X, Y), signature) == Batch((X, Y), {})
    assert split_batch((X, Y, Z), signature) == Batch((X, Y), {}, Z)


def test_labels_that_forward_needs_are_arguments() -> None:
    class Needs(nn.Module):
        def forward(self, x: Any, labels: Any, label: float = 0.1) -> None:
            pass

    assert Signature.of(Needs()) == Signature(("x", "labels", "label"), 2)


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        return x.add_(1) if x is same else same


def test_a_model_that_changes_its_inputs_changes_its_own() -> None:
    x = torch.zeros(2, 3)
    batch = Batch((x, x), {})  # one tensor, twice
    assert batch.run(Shifted()).sum() == batch.run(Shifted()).sum() == 6
    assert x.sum() == 0
