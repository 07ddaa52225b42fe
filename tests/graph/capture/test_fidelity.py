"""A captured graph is compared with its model: what is another function is told."""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.errors import CaptureError
from octavo.graph.capture.capture import capture
from octavo.graph.capture.fidelity import Faithful, difference
from octavo.graph.size_guards import Guard


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)


class Exporting(Net):
    """Takes another way while it is exported."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y if torch.compiler.is_compiling() else y * (1 + self.share)


class Pooling(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y if torch.compiler.is_compiling() else y.sum(1)


class Drawing(Net):
    """Chance that no graph has: Python's own."""

    def forward(self, x: Tensor) -> Tensor:
        import random

        return self.a(x) * random.random()


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), 0.5)  # in evaluation too


class Dividing(Net):
    """NaN in model and graph alike."""

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) / (x > 100).float() + F.relu(x).log()


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.a(x).argmax(1), self.a(x).double()


def row() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8)


def test_another_function_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"of Exporting is not what .* to 6\.0 dB.*is_comp"):
        capture(Exporting(1.0), row())
    with pytest.raises(CaptureError, match=r"output 0 is float32\[2, 8\], not float32\[2\]"):
        capture(Pooling(), row())
    with pytest.raises(CaptureError, match="graph of Exporting is not what"):
        octavo.prepare_qat(Exporting(1.0), row())


def test_a_small_difference_is_a_warning() -> None:
    with pytest.warns(octavo.OctavoWarning, match=r"agrees with it to 40\.1 dB"):
        capture(Exporting(0.01), row())


def test_chance_is_told_unless_it_is_in_the_graph() -> None:
    with pytest.warns(octavo.OctavoWarning, match="Drawing returns something else each time"):
        capture(Drawing(), row())
    with warnings.catch_warnings():
        warnings.simplefilter("error", octavo.OctavoWarning)
        capture(Dropping(), row())


@pytest.mark.parametrize("kind", [Dividing, Counting])
def test_what_is_the_same_is_taken(kind: type[Net]) -> None:
    model = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error", octavo.OctavoWarning)
        capture(model, row())
    assert "calls" not in vars(model)


ONE = torch.ones(1000)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        (ONE, ONE, None),
        (ONE * 1.0009, ONE, None),
        (ONE * 1.01, ONE, 0.01),
        (ONE * 0, ONE, 1.0),
        (ONE * 1e-12, ONE * 0, None),
        (ONE, ONE.double(), math.inf),
        (ONE, ONE[:5], math.inf),
        (ONE * math.nan, ONE * math.nan, None),
        (ONE * math.inf, ONE * math.inf, None),
        (ONE * math.nan, ONE, 1.0),
        (ONE.int(), ONE.int(), None),
        (ONE.int(), (torch.arange(1000) > 99).int(), 0.1),
        (ONE.bool(), torch.arange(1000) > 4, None),  # a few that a rounding turned
        (ONE * 1j, ONE * 1j, None),
        (ONE[:0], ONE[:0], None),
        (3, 3, None),
        (3, 4, math.inf),
        (3, ONE, math.inf),
    ],
)
def test_differences(found: Any, expected: Any, error: float | None) -> None:
    told = difference([ONE, found], [ONE, expected], rounding=1e-3)
    if error is None:
        assert told is None
    else:
        assert told is not None
        assert told[0] == pytest.approx(error, rel=1e-3)
        assert told[1].startswith("output 1 ")


def test_a_guard_is_needless_where_the_model_ran_and_agreed() -> None:
    """Pools of 16 do not run on the smallest sizes, which say nothing of a single piece."""

    class Pieces(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.avg_pool1d(x, 16)
            return y * 2 if y.shape[2] == 1 else y

    x = torch.randn(2, 3, 64)
    graph = replace(capture(Pieces(), x), guards=())
    count = ("//", ("size", "x", 2), 16)
    for condition in ((">=", count, 2), ("<", 1, count)):
        guard = Guard(condition, "an operator needs it")
        assert Faithful(graph, Pieces(), (x,), {}).settled([guard]).guards == (guard,)
        assert not Faithful(graph, nn.AvgPool1d(16), (x,), {}).settled([guard]).guards


class Widths(nn.Module):
    """Means of rows, which one difference of their widths doubles."""

    def __init__(self, special: int) -> None:
        super().__init__()
        self.special = special

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.mean(1) + y.mean(1)
        return total * 2 if x.shape[1] - y.shape[1] == self.special else total


def test_what_a_guard_excludes_of_two_sizes_is_tried_on_pairs() -> None:
    call = (torch.randn(2, 40), torch.randn(2, 30))
    graph = replace(capture(Widths(1000), call), guards=())
    wider = ("+", ("size", "x", 1), ("*", -1, ("size", "y", 1)))
    guard = Guard(("!=", wider, 3), "an operator needs it")
    assert Faithful(graph, Widths(3), call, {}).settled([guard]).guards == (guard,)
    assert not Faithful(graph, Widths(1000), call, {}).settled([guard]).guards


def test_another_number_of_results() -> None:
    assert difference([ONE], [ONE, ONE], 1e-3) == (math.inf, "it returns 1 values, and the model 2")


def test_no_bags_are_tried_that_end_the_process() -> None:
    """None at all, where the last offset is the end: torch's kernels read beyond them."""
    seen: list[int] = []

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(20, 8, mode="sum", include_last_offset=True)

        def forward(self, indices: Tensor, offsets: Tensor) -> Any:
            if not torch.compiler.is_compiling():
                seen.append(len(offsets))
            return self.bag(indices, offsets)

    capture(Bags().eval(), (torch.randint(0, 20, (12,)), torch.tensor([0, 3, 3, 7, 12])), {})
    assert 5 in seen
    assert 1 not in seen


_SEEN: list[int] = []  # of a model itself nothing would be left


class Sampled(Net):
    """Notes the samples that it is called with, when it is not exported."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            _SEEN.append(x.shape[0])
        y: Tensor = self.a(x)
        return y


class OfManySamples(Sampled):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if x.shape[0] > 32 else y


def test_a_large_batch_is_compared_by_its_first_samples() -> None:
    _SEEN.clear()
    graph = capture(Sampled().eval(), (torch.randn(64, 8),))
    assert 3 in _SEEN
    assert max(_SEEN) <= 2 * 3
    assert graph.broken_guard({"x": (64, 8)}) is None


def test_where_a_few_samples_take_another_path_all_are_compared() -> None:
    _SEEN.clear()
    graph = capture(OfManySamples().eval(), (torch.randn(64, 8),))
    assert 64 in _SEEN
    assert graph.broken_guard({"x": (64, 8)}) is None
    assert graph.broken_guard({"x": (3, 8)}) is not None


class Streaming(nn.Module):
    """Goes on where its last call ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)
        self.state: Tensor | None = None
        self.frames: deque[Tensor] = deque(maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.frames.append(x)
        self.state = self.cell(x, self.state)
        return self.state


def test_what_depends_on_the_calls_before_is_an_error() -> None:
    model = nn.Sequential(Streaming()).eval()
    with pytest.raises(CaptureError, match=r"keeps in 0\.state, 0\.frames what its next call"):
        capture(model, row())
    assert model[0].state is None
    assert not model[0].frames
