"""Sizes that a model leaves open are open, in whatever axis; what it fixes, its line tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running import run_graph
from torch import Tensor, nn

import octavo
from octavo.errors import InputError


class Net(nn.Module):
    """Parts, and a function of them in place of ``forward``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        return self.function(self, x, *others)


def states(m: Net, x: Tensor, h: Tensor, c: Tensor) -> Any:
    y, (h, c) = m.l(x, (h, c))
    return m.f(y), h, c


def by_edges(m: Net, x: Tensor, edges: Tensor) -> Tensor:
    h: Tensor = m.a(x)
    return torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])


def attending(m: Net, x: Tensor, padding: Tensor) -> Any:
    return m.a(x, x, x, key_padding_mask=padding, need_weights=False)[0]


def causal(m: Net, words: Tensor) -> Any:
    count, steps = words.shape
    q, k, v = m.q(m.e(words)).view(count, steps, 3, 8).unbind(2)
    seen = torch.tril(torch.ones(steps, steps, dtype=torch.bool))
    return (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def positions(m: Net, words: Tensor) -> Any:
    return m.f((m.e(words) + m.p(torch.arange(words.shape[1]))).mean(1))


def resized(m: Net, x: Tensor) -> Any:
    small = F.relu(m.a(x))
    return m.b(F.interpolate(small, size=x.shape[-2:], mode="bilinear"))


def lstm(n: int, steps: int, layers: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(n, steps, 8), torch.randn(layers, n, 6), torch.randn(layers, n, 6)


def nodes(count: int, edges: int) -> tuple[Tensor, ...]:
    return torch.randn(count, 8), torch.randint(0, count, (2, edges))


def words(n: int, steps: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 9, (n, steps)),)


def image(n: int, *sides: int) -> tuple[Tensor, ...]:
    return (torch.rand(n, 3, *sides),)


def sequence(steps: int, n: int) -> tuple[Tensor, ...]:
    return torch.randn(steps, n, 8), torch.arange(steps).expand(n, steps) > max(2, steps // 2)


# Parts, function, example, its inputs as declared, other calls.
Case = tuple[dict[str, nn.Module], Callable[..., Any], Any, list[str], list[Any]]


def cases() -> Mapping[str, Case]:
    torch.manual_seed(0)
    recurrent = {"l": nn.LSTM(8, 6, 2, batch_first=True), "f": nn.Linear(6, 4)}
    text = {"e": nn.Embedding(9, 8), "q": nn.Linear(8, 24)}
    placed = {"e": nn.Embedding(9, 8), "p": nn.Embedding(40, 8), "f": nn.Linear(8, 4)}
    convs = {"a": nn.Conv2d(3, 8, 3, 2, 1), "b": nn.Conv2d(8, 4, 1)}
    declared = ["float32[N, x_1, 8]", "float32[2, N, 6]", "float32[2, N, 6]"]
    one_layer = {**recurrent, "l": nn.LSTM(8, 6, batch_first=True)}
    of_one = [declared[0], "float32[1, N, 6]", "float32[1, N, 6]"]
    return {
        "states": (recurrent, states, lstm(4, 6), declared, [lstm(1, 6), lstm(3, 1), lstm(2, 9)]),
        "states of one": (recurrent, states, lstm(1, 1), declared, [lstm(1, 1), lstm(3, 9)]),
        "states, one layer": (one_layer, states, lstm(1, 6, 1), of_one, [lstm(3, 9, 1)]),
        "time first": (
            {"l": nn.GRU(8, 6)},
            lambda m, x: m.l(x)[0],
            (torch.randn(5, 2, 8),),
            ["float32[N, x_1, 8]"],
            [(torch.randn(1, 3, 8),), (torch.randn(7, 1, 8),)],
        ),
        "attention, time first": (
            {"a": nn.MultiheadAttention(8, 2)},
            attending,
            sequence(6, 3),
            ["float32[N, x_1, 8]", "bool[x_1, N]"],
            [sequence(9, 2), sequence(3, 1)],
        ),
        "causal": (text, causal, words(2, 5), ["int64[N, x_1]"], [words(1, 1), words(3, 30)]),
        "square": (text, causal, words(2, 2), ["int64[N, x_1]"], [words(1, 3), words(3, 30)]),
        "one word": (text, causal, words(1, 1), ["int64[N, x_1]"], [words(1, 3), words(3, 1)]),
        "positions": (
            placed,
            positions,
            words(2, 5),
            ["int64[N, x_1]"],
            [words(1, 1), words(3, 40)],
        ),
        "graph": (
            {"a": nn.Linear(8, 6)},
            by_edges,
            nodes(10, 30),
            ["float32[N, 8]", "int64[others_0_0, others_0_1]"],
            [nodes(10, 28), nodes(4, 1), nodes(30, 99)],
        ),
        "image": (
            convs,
            resized,
            image(2, 16, 16),
            ["float32[N, 3, x_2, x_3]"],
            [image(1, 16, 24), image(3, 7, 9)],
        ),
    }


NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_open_wherever_the_model_leaves_them(name: str) -> None:
    parts, function, example, declared, others = cases()[name]
    model = Net(function, **parts).eval()
    graph = octavo.capture(model, example)
    assert [str(entry) for entry in graph.inputs] == declared
    for call in (example, *others):
        with torch.no_grad():
            expected = model(*call)
        torch.testing.assert_close(run_graph(graph, *call), expected, rtol=1e-4, atol=1e-5)
    data = [example, *others]
    q = octavo.quantize(model, calibration=data, inputs=lambda call: call, progress=False)
    oracle = q.lower("reference")
    # States have eight bits in the kernel, and are not rounded in the oracle.
    near = 1e-2 if "states" in name else 1e-3
    for call in others:
        torch.testing.assert_close(q(*call), oracle(*call), rtol=1e-3, atol=near)


FIXED: dict[str, tuple[Callable[..., Any], str]] = {
    "a loop": (
        lambda m, x: torch.stack([m.a(part) for part in x.unbind(1)], 1),
        r"x\.shape\[1\] == 6",
    ),
    "a table": (lambda m, x: m.a(x) + torch.ones(6, 1), r"x\.shape\[1\] == 6"),
    "a number": (lambda m, x: m.a(x) / int(x.shape[1]), r"x\.shape\[1\] == 6"),
}


@pytest.mark.parametrize(("function", "guard"), FIXED.values(), ids=FIXED)
def test_a_size_that_the_model_fixes_is_told_with_the_line(
    function: Callable[..., Any], guard: str
) -> None:
    model = Net(function, a=nn.Linear(8, 8)).eval()
    graph = octavo.capture(model, torch.randn(2, 6, 8))
    assert str(graph.inputs[0]) == "float32[N, 6, 8]"
    line = r"forward depends on it at \w+/test_open_sizes\.py:\d+ \((<lambda>|<listcomp>)\)"
    with pytest.raises(InputError, match=rf"expected float32\[N, 6, 8\]; {guard} is fixed: {line}"):
        run_graph(graph, torch.randn(2, 7, 8))
    with pytest.raises(InputError, match=rf"'length' of 'x' cannot be open: {guard} is .*{line}"):
        octavo.capture(model, torch.randn(2, 6, 8), open_sizes={"x": {1: "length"}})


def test_sizes_that_depend_on_each_other_are_open_together() -> None:
    model = Net(lambda m, x: m.f(x.flatten(1)), f=nn.Linear(48, 4)).eval()
    graph = octavo.capture(model, torch.randn(2, 6, 8))
    x = torch.randn(3, 4, 12)
    torch.testing.assert_close(run_graph(graph, x), model(x))
    with pytest.raises(InputError, match=r"captured for x\.shape\[1\] \* x\.shape\[2\] == 48: f"):
        run_graph(graph, torch.randn(2, 7, 8))


def test_sizes_are_stated_and_named() -> None:
    model = Net(causal, e=nn.Embedding(9, 8), q=nn.Linear(8, 24)).eval()
    stated: dict[str, dict[int, str]] = {"x": {1: "length"}}
    q = octavo.quantize(model, words(2, 5), calibration=[words(2, 7)], open_sizes=stated)
    trained = octavo.prepare_qat(model, words(2, 5), open_sizes=stated)
    for graph in (octavo.capture(model, words(2, 5), open_sizes=stated), q.graph):
        assert str(graph.inputs[0]) == "int64[N, length]"
    assert trained(*words(3, 9)).shape == (3, 9, 8)
    with pytest.raises(
        InputError, match=r"is int64\[9\]; expected int64\[N, length\].*give x\[None\]"
    ):
        q(torch.zeros(9, dtype=torch.int64))
    with pytest.raises(InputError, match=r"is int32\[2, 9\]; .*N and length are free"):
        q(torch.zeros(2, 9, dtype=torch.int32))


def test_what_is_not_stated_is_fixed() -> None:
    model = Net(lambda m, x: m.a(x).relu(), a=nn.Conv2d(3, 8, 3)).eval()
    described = {
        "float32[N, 3, x_2, x_3]": None,
        "float32[N, 3, 16, 16]": {},
        "float32[N, 3, 16, width]": {"x": {3: "width"}},
        "float32[batch, 3, height, 16]": {"x": {0: "batch", 2: "height"}},
    }
    for expected, stated in described.items():
        graph = octavo.capture(model, *image(2, 16, 16), open_sizes=stated)
        assert str(graph.inputs[0]) == expected
        assert graph.inputs[0].batch_axis == 0


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"y": {1: "length"}}, r"open_sizes is about 'y'; the model's inputs are \['x'\]"),
        ({"x": {4: "length"}}, r"open_sizes has the axis 4 of 'x', which is float32\["),
        ({"x": {1: "channels"}}, r"'channels' of 'x' cannot be open: x\.shape\[1\] == 3 is fixed"),
        ({"x": ["length"]}, "open_sizes is .*: give a name for each axis"),
        ({"x": {1: ""}}, "open_sizes is .*: give a name for each axis"),
        ("length", "open_sizes is .*: give a name for each axis"),
    ],
)
def test_what_cannot_be_open(stated: Any, message: str) -> None:
    model = Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 8, 3)).eval()
    with pytest.raises(InputError, match=message):
        octavo.capture(model, *image(2, 16, 16), open_sizes=stated)


def test_sizes_that_export_cannot_follow_are_fixed_and_say_so() -> None:
    def winding(m: Net, x: Tensor) -> Tensor:
        for _ in range(6):  # each size is a longer formula of the one before
            x = F.pad(x, (0, x.shape[2] % 3, 0, x.shape[3] % 5))[:, :, ::2]
            x = m.a(x)
        return x.flatten(1)

    model = Net(winding, a=nn.Conv2d(3, 3, 3, padding=1)).eval()
    graph = octavo.capture(model, *image(2, 64, 32))
    assert str(graph.inputs[0]) == "float32[N, 3, 64, 32]"
    why = r"x\.shape\[2\] == 64 is fixed: with more than the batch open, what forward computes from"
    with pytest.raises(InputError, match=why + r" its sizes at \w+/test_open_sizes.py:\d+ \(wind"):
        run_graph(graph, *image(2, 32, 32))


def test_a_file_keeps_the_names(tmp_path: Any) -> None:
    model = Net(lambda m, x: m.a(x), a=nn.Linear(8, 8)).eval()
    q = octavo.quantize(model, calibration=[torch.randn(2, 5, 8)], open_sizes={"x": {1: "length"}})
    q.save(tmp_path / "model.octavo")
    loaded = octavo.load(tmp_path / "model.octavo")
    assert str(loaded.graph.inputs[0]) == "float32[N, length, 8]"
    x = torch.randn(3, 9, 8)
    assert torch.equal(loaded(x), q(x))
