"""A runtime against the oracle, end to end: what passes, what does not, and by which bound."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from calling import Call
from torch import nn

import octavo
from octavo.errors import OctavoError, RuntimeDisagrees, RuntimeUnavailable
from octavo.graph.graph import Ref
from octavo.graph.program import run_of
from octavo.numerics.sqnr import sqnr_db
from octavo.runtimes import ORACLE, RUNTIMES, lower
from octavo.runtimes.agreement import NEAR_DB, agreement, farthest_layer
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.perturbation import AT_LEAST, SHARE, perturbed

CPU = torch.device("cpu")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    data = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))]
    target = octavo.host_target()
    return octavo.quantize(_net(), calibration=data, target=target, progress=False)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def _lowered(run) -> Lowered:
    return Lowered(run, {}, {})


def _by(change):
    """A runtime that changes the integers of the second convolution's result."""

    def run(graph):
        steps = []
        for node in graph.nodes:
            if node.name == "3.quantized":
                node = replace(
                    node, args=(*node.args[:1], *change(*node.args[1:3]), *node.args[3:])
                )
            steps.append(node)
        return run_of(replace(graph, nodes=tuple(steps)))

    return run


def test_the_oracle_agrees_with_itself(q, x):
    found = agreement(q.graph, _lowered(run_of(q.graph)), [(x,)])
    assert found.agrees
    assert found.sqnr_db == math.inf
    assert found.bound_db is None
    assert str(found) == "equal on 2 samples"


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        (lambda scale, zero: (scale * (1 + 1e-6), zero), True),  # another order of sums
        (lambda scale, zero: (scale * 1.02, zero), False),
        (lambda scale, zero: (scale, zero + 1), False),
    ],
)
def test_what_is_more_than_rounding_disagrees(q, x, change, agrees):
    found = agreement(q.graph, _lowered(_by(change)(q.graph)), [(x,)])
    assert found.agrees is agrees
    if not agrees:
        assert found.sqnr_db < found.bound_db < NEAR_DB


def test_the_bound_is_the_oracles_own_distance(q, x):
    """Four times the noise of the worst of eight draws, which are the same each time."""
    graph = q.graph
    worse = _lowered(_by(lambda scale, zero: (scale * 1.5, zero))(graph))
    found = agreement(graph, worse, [(x,)])
    (want,) = run_of(graph)(x)
    draws = [perturbed(graph, worse, CPU, seed, halves=seed >= 2) for seed in range(8)]
    noises = [(draw(x)[0] - want).square().sum() for draw in draws]
    expected = 10 * torch.log10(want.square().sum() / (4 * max(noises)))
    assert found.bound_db == pytest.approx(expected.item(), abs=1e-3)


def test_nudged_moves_few_integers_by_a_step(q, x):
    graph = q.graph
    names = [node.name for node in graph.nodes if node.op == "octavo.quantize.default"]
    only = replace(graph, outputs=[Ref(names[0])]).pruned()
    (exact,), (moved,) = run_of(only)(x), perturbed(only, _lowered(None), CPU, 0)(x)
    difference = (exact.int() - moved.int()).abs()
    assert difference.max() == 1
    assert 1 <= difference.sum() <= max(AT_LEAST, round(SHARE * exact.numel()))


def test_nudged_moves_what_lies_between_two_integers(q):
    """A mean of two neighbours does, and not every runtime rounds it to the even one."""
    (node, *_) = (node for node in q.graph.nodes if node.op == "octavo.quantize.default")
    only = replace(q.graph, outputs=[Ref(node.name)]).pruned()
    scale, zero_point = node.args[1:3]
    steps = torch.arange(3 * 12 * 12).reshape(1, 3, 12, 12) % 60

    def both(part):
        x = (steps + part) * scale
        other = perturbed(only, _lowered(None), CPU, 0, halves=True)
        return [run(x)[0].int() - zero_point for run in (run_of(only), other)]

    exact, moved = both(0.5)
    assert ((exact + moved) / 2 == steps + 0.5).sum() >= steps.numel() - AT_LEAST
    exact, moved = both(0.499)
    assert (exact == moved).sum() >= steps.numel() - AT_LEAST


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_are_rounded_where_the_sequences_are_zeros(kind):
    torch.manual_seed(0)
    layer, x = kind(16, 24, 2, batch_first=True).eval(), torch.zeros(2, 12, 16)
    q = octavo.quantize(layer, x, mode="dynamic", target="x86", progress=False)
    (name,) = (node.name for node in q.graph.nodes if node.short_op in ("lstm", "gru"))
    rounds = Lowered(run_of(q.graph), {}, {}, rounds={name: 2 / 127})
    (exact, *_), (other, *_) = run_of(q.graph)(x), perturbed(q.graph, rounds, CPU, 0)(x)
    db = sqnr_db(float(exact.square().sum()), float((exact - other).square().sum()))
    assert 30 < db < 70  # half a step of 127 in some 24 states, by weights of a fifth


def test_zeros_prove_nothing(tmp_path):
    """An example of zeros says nothing of weights: others are drawn for the comparison."""
    layer = nn.Linear(8, 8, bias=False).eval()
    q = octavo.quantize(layer, torch.zeros(2, 8), mode="dynamic", target="x86", progress=False)
    assert all(batch[0].any() for batch in q.check_inputs())
    q.save(tmp_path / "q.octavo")
    loaded = octavo.load(tmp_path / "q.octavo")
    assert all(batch[0].any() for batch in loaded.check_inputs())


def test_classes_may_differ_where_a_step_decides(x):
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x):
            return self.net(x).argmax(1)

    q = octavo.quantize(Classes(), calibration=[x], target=octavo.host_target(), progress=False)
    many = torch.randn(200, 3, 12, 12)
    (right,) = run_of(q.graph)(many)

    def off(count):
        return agreement(
            q.graph, _lowered(lambda _: (torch.cat([right[:count] + 1, right[count:]]),)), [(many,)]
        )

    assert off(2).agrees
    assert not off(100).agrees


def test_nan_and_infinity_are_equal_to_themselves():
    odd = Call(lambda y: (y / 0.0, y.masked_fill(y > 0, -math.inf)))
    net = nn.Sequential(nn.Linear(8, 4), odd)
    data = torch.randn(4, 8)
    q = octavo.quantize(net, data, mode="dynamic", target=octavo.host_target(), progress=False)
    assert q.lowered.agreement.agrees
    broken = _lowered(lambda x: tuple(t.nan_to_num() for t in run_of(q.graph)(x)))
    assert not agreement(q.graph, broken, [(data,)]).agrees


def test_another_shape_disagrees(q, x):
    found = agreement(q.graph, _lowered(lambda x: (run_of(q.graph)(x)[0][:, :4],)), [(x,)])
    assert not found.agrees


def test_what_the_oracle_cannot_run_is_not_compared(q):
    assert agreement(q.graph, q.lowered, [(torch.randn(2, 4, 12, 12),)]) is None


def test_the_layer_is_named(q, x):
    def lower_wrongly(graph):
        return _lowered(_by(lambda scale, zero: (scale * 1.5, zero))(graph))

    layer, db = farthest_layer(q.graph, lower_wrongly, (x,))
    assert layer == "3"
    assert db < 15


def _lower_wrong(graph, device, options):
    """To a runtime whose second layer is wrong."""
    return _lowered(_by(lambda scale, zero: (scale * 1.5, zero))(graph))


@pytest.fixture
def wrong(monkeypatch):
    record = replace(RUNTIMES["onnxruntime"], lower=_lower_wrong)
    monkeypatch.setitem(RUNTIMES, "onnxruntime", record)


@pytest.mark.usefixtures("wrong")
def test_lowering_to_a_wrong_runtime_says_where(q):
    with pytest.raises(RuntimeDisagrees, match=r"'3' is farthest off.*check=False") as caught:
        q.lower("onnxruntime")
    assert isinstance(caught.value, RuntimeUnavailable)
    assert isinstance(caught.value, OctavoError)
    taken = q.lower("onnxruntime", check=False)
    assert taken.lowered.agreement is None
    assert "against the oracle: not compared" in str(taken.summary())


@pytest.mark.usefixtures("wrong")
def test_the_fastest_passes_over_what_disagrees(q, monkeypatch):
    monkeypatch.setattr("octavo.runtimes.fastest.SECONDS", 0.2)
    fastest = q.lower("fastest").lowered
    assert fastest.runtime != "onnxruntime"
    assert "not onnxruntime: the onnxruntime runtime computes something else" in fastest.note


@pytest.mark.usefixtures("wrong")
def test_loading_to_a_wrong_runtime(q, tmp_path):
    q.save(tmp_path / "m.octavo")
    with pytest.raises(RuntimeDisagrees, match="'3' is farthest off"):
        octavo.load(tmp_path / "m.octavo", "onnxruntime")
    octavo.load(tmp_path / "m.octavo", "onnxruntime", check=False)


def test_a_file_keeps_the_ranges_that_inputs_are_drawn_from(q, tmp_path):
    q.save(tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo")
    assert loaded.graph.inputs == q.graph.inputs
    low, high = loaded.graph.inputs[0].seen
    assert -6 < low < -2 < 2 < high < 6
    assert loaded.samples is None
    assert loaded.lowered.agreement.agrees
    assert loaded.lowered.agreement.samples == 2 + 1 + 7 + 2 * 2  # the last are smaller


def test_the_summary_says_how_near(q):
    summary = q.summary()
    assert summary.agreement == str(q.lowered.agreement)
    assert "on 14 samples" in summary.agreement
    assert q.lower("reference").summary().agreement == "it is the oracle"


def test_an_attribute_error_in_lowering_is_told_as_it_is(q, monkeypatch):
    def broken(*args):
        return None.missing

    monkeypatch.setattr("octavo.model.model.lower", broken)
    with pytest.raises(RuntimeError, match="'NoneType' object has no attribute 'missing'"):
        q.lower("torch")


def test_no_options_is_no_comparison(q):
    assert lower(q.graph, "torch", CPU).agreement is None


def compiling(monkeypatch, wrong_for, first_size):
    """A runtime that compiles for sizes from ``first_size`` on, and is wrong where it is said; the
    shapes that it met.
    """
    seen = []

    def lowering(graph, device, options):
        oracle = RUNTIMES[ORACLE].lower(graph, device, options)

        def run(x, *given):
            seen.append(list(x.shape))
            wrong = 1.1 if wrong_for(x.shape) else 1.0
            return tuple(result * wrong for result in oracle.run(x, *given))

        sizes_of = lambda tensors: tuple(tensors[0].shape[first_size:])  # noqa: E731
        return replace(oracle, run=run, compiled_for=sizes_of)

    monkeypatch.setitem(RUNTIMES, "compiling", replace(RUNTIMES[ORACLE], lower=lowering))
    return seen


def test_a_program_for_one_batch_size_is_compared_on_that(monkeypatch, q):
    """It is wrong for batches of five, which two samples of these do not show."""
    seen = compiling(monkeypatch, lambda shape: shape[0] == 5, first_size=0)
    lowered = q.lower("compiling")
    seen.clear()
    for _ in range(2):
        lowered(torch.randn(4, 3, 10, 10))
    assert seen == [[4, 3, 10, 10]] * 3
    with pytest.raises(RuntimeDisagrees, match="compiling runtime computes something else"):
        lowered(torch.randn(5, 3, 10, 10))


def test_a_program_that_is_compiled_for_other_sizes_is_compared_at_its_first_call(monkeypatch, q):
    """It is wrong for images of 9 by 9."""
    seen = compiling(monkeypatch, lambda shape: shape[2:] == (9, 9), first_size=2)
    lowered = q.lower("compiling")
    seen.clear()
    for _ in range(2):
        lowered(torch.randn(5, 3, 10, 10))
        lowered(torch.randn(4, 3, 12, 12))
    later = [[5, 3, 10, 10], [4, 3, 12, 12]]
    assert seen == [[2, 3, 10, 10], *later, *later]
    for _ in range(2):
        with pytest.raises(RuntimeDisagrees, match="compiling runtime computes something else"):
            lowered(torch.randn(5, 3, 9, 9))
    q.lower("compiling", check=False)(torch.randn(5, 3, 9, 9))
