"""`octavo.Reconstruction`: blocks, what is learned of them, and what that brings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from residual import ResidualNet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import InputError, PlanError
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.graph.qdq import QUANTIZE, Ref, weight_behind
from octavo.qat.reconstruction import Chunks, Reconstruction, reconstructed, reconstruction
from octavo.qat.reconstruction.blocks import Block, blocks_of, part_of
from octavo.qat.reconstruction.learned import Learned, LearnedRange
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan
from octavo.quantization.weights import quantized_layers

FOUR_BITS = octavo.QConfig(
    octavo.static_qconfig().activation,
    octavo.QSpec(octavo.Scheme("int4", symmetric=True, channel_axis=0), octavo.MSE()),
)


def images(count: int = 8, size: int = 32, seed: int = 1) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=chance).cumsum(3) for _ in range(count)]


def prepared(
    model: nn.Module, data: Sequence[Tensor], qconfig: octavo.QConfig = FOUR_BITS
) -> tuple[Graph, Plan, Graph]:
    """The float graph, its plan, and the quantized graph."""
    graph = octavo.capture(model.eval(), data[0])
    rules = octavo.QConfigMapping().set_global(qconfig)
    plan = octavo.plan(graph, rules, "x86", "static")
    found = octavo.calibrate(graph, plan, data, progress=False)
    return graph, plan, quantize_graph(graph, plan, found.qparams)


@pytest.fixture(scope="module")
def residual() -> tuple[Graph, Plan, Graph]:
    """`prepared`, of a network with a shortcut."""
    torch.manual_seed(0)
    return prepared(ResidualNet(), images())


def noise_db(graph: Graph, other: Graph, data: Sequence[Tensor]) -> float:
    """SQNR of the first output."""
    pairs = [(run_of(graph)(x)[0], run_of(other)(x)[0]) for x in data]
    signal = sum(float(a.square().sum()) for a, _ in pairs)
    return 10 * math.log10(signal / sum(float((a - b).square().sum()) for a, b in pairs))


def test_a_sum_ends_a_block(residual: tuple[Graph, Plan, Graph]) -> None:
    graph, _, _ = residual
    blocks = blocks_of(graph, {"conv", "conv2", "fc"})
    assert [block.layers for block in blocks] == [("conv",), ("conv2",), ("fc",)]
    (first, second, third) = blocks
    assert (first.starts, third.ends) == ((), tuple(graph.output_names()))
    assert (second.starts, third.starts) == (first.ends, second.ends)
    assert {node.short_op for node in part_of(graph, second).nodes} >= {"conv2d", "add", "relu"}


class LongSkips(nn.Module):
    """Nine layers between two ends of a shortcut, and an index beside the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(8, 3)
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = y = self.first(x)
        for layer in self.inner:
            y = layer(y).relu()
        scores = self.last(torch.cat([first, y], 1))
        return scores.argmax(1), scores


def test_what_runs_past_many_layers_is_cut_at_each() -> None:
    torch.manual_seed(0)
    data = [torch.randn(16, 4) for _ in range(4)]
    graph, plan, quantized = prepared(LongSkips(), data)
    blocks = blocks_of(graph, {layer.name for layer in quantized_layers(graph, plan)})
    assert [len(block.layers) for block in blocks] == [1] * 11
    assert set(blocks[-2].starts) == {*blocks[0].ends, *blocks[-3].ends}
    assert blocks[-1].starts == blocks[-2].ends
    assert blocks[-1].ends == ("last",)
    assert Block((), ("z",), ("a.b.c", "a.b.d")).name == "a.b"
    assert Block((), ("z",), ("a", "b")).name == "a to b"
    values = {"x": data[0]}
    for block in blocks:  # one after the other they are the model
        part = part_of(quantized, block)
        found = run_of(part)(*(values[name] for name in part.input_names()))
        values |= dict(zip(block.ends, found, strict=True))
    assert torch.equal(values["last"], run_of(quantized)(data[0])[1])


def test_chunks() -> None:
    """Of 32 samples, every fourth for judging."""
    batches = [[torch.arange(64.0)[:, None], torch.zeros(64)] for _ in range(4)]
    chunks = Chunks.of(batches)
    assert [len(chunk[0]) for chunk in chunks.fitted] == [32] * 6
    assert [int(chunk[0][0]) for chunk in chunks.held] == [32, 32]
    assert len(Chunks.of(batches, samples=96).fitted) == 2
    assert [len(chunk[0]) for chunk in Chunks.of(batches[:1]).fitted] == [32]
    assert [len(chunk[0]) for chunk in Chunks.of([[torch.zeros(5, 2)]]).held] == [1]
    whole = Chunks.of([[torch.zeros(5, 2)]], is_open=False)
    assert whole.held is whole.fitted


def reference(
    layer: nn.Linear,
    x: Tensor,
    scale: Tensor,
    source: tuple[float, int],
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A linear layer alone, by the equations of the papers, with autograd and torch's Adam: the
    integers, the scales of the weight, that of the input, and the bias.
    """
    weight, bias = layer.weight.detach(), layer.bias.detach()
    target = x @ weight.t() + bias
    size = target.square().mean()
    scale, (read, zero) = scale[:, None], source
    below = torch.floor(weight / scale)
    integers = torch.round(weight / scale).clamp(-8, 7)
    start = ((weight / scale - below) + (integers - below)).clamp(0, 2) / 2
    v = torch.logit(((start + 0.1) / 1.2).clamp(1e-6, 1 - 1e-6)).requires_grad_()
    b, t, u = bias.clone().requires_grad_(), torch.zeros_like(scale), torch.zeros(())
    t.requires_grad_(), u.requires_grad_()
    nearest = (integers * scale) @ x.t()
    unit = ((nearest.t() + bias - target).square().mean() / size).item()
    adam = torch.optim.Adam(
        [
            {"params": [v], "lr": 0.02},
            {"params": [t, u], "lr": 0.016 * unit**0.5},
            {"params": [b], "lr": 0.008 * unit**0.5 * target.square().mean().sqrt().item()},
        ]
    )
    rates = [group["lr"] for group in adam.param_groups]
    for step in range(steps):
        done = step / steps
        for group, rate in zip(adam.param_groups[1:], rates[1:], strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * max(done - 0.5, 0) / 0.5)) / 2
        driven = done / 0.5
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        if driven >= 1:
            h = (h.detach() >= 0.5).float()
        w = (below + h).clamp(-8, 7) * scale * t.exp()
        step_of_x = read * u.exp()
        places = (x / step_of_x).clamp(0 - zero, 255 - zero)
        rounded = (places + (places.round() - places).detach()) * step_of_x
        loss = (rounded @ w.t() + b - target).square().mean() / size / unit
        if 0.2 <= driven < 1:
            beta = 2 + 18 * (1 + math.cos(math.pi * (driven - 0.2) / 0.8)) / 2
            loss = loss + 5.0 * (1 - (2 * h - 1).abs().pow(beta)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    up = torch.sigmoid(v.detach()) >= 0.5
    integers = (below + up).clamp(-8, 7)
    return integers, (scale * t.exp()).detach(), (read * u.exp()).detach(), b.detach()


def test_what_the_papers_equations_give() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 6)
    x = torch.randn(32, 12) @ torch.randn(12, 12)
    graph, plan, quantized = prepared(nn.Sequential(layer), [x])
    chunks = Chunks([[x]], [[x]])
    before = weight_behind(quantized, Ref("0.weight.dequantized"))
    rounding = next(node for node in quantized.nodes if node.op == QUANTIZE)
    assert before is not None
    method = Reconstruction(steps=200, drop=0.0)
    found = reconstructed(graph, plan, quantized, chunks, method)
    after = weight_behind(found.quantized, Ref("0.weight.dequantized"))
    assert after is not None
    integers, scale, read, bias = reference(
        layer, x, before.scale.flatten(), rounding.args[1:3], 200
    )
    assert [block.kept for block in found.blocks] == [True]
    assert torch.equal(after.integers.float(), integers)
    assert not torch.equal(after.integers, before.integers)
    torch.testing.assert_close(after.scale, scale, rtol=1e-4, atol=0)
    learned = next(node for node in found.quantized.nodes if node.op == QUANTIZE)
    assert learned.args[1] == pytest.approx(read.item(), rel=1e-4)
    name = found.quantized.by_name["0"].args[2].name
    half = 0.51 * read.item() * float(scale.max())  # biases are whole steps
    torch.testing.assert_close(found.quantized.constants[name], bias, rtol=1e-3, atol=half)


def test_dropped_rounding_leaves_values_as_they_are() -> None:
    now = octavo.QParams(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), octavo.Scheme())
    x = torch.linspace(-4.0, 4.0, 9) + 0.1
    mask = torch.arange(9) % 2 == 0
    rounding = LearnedRange(now, True, lambda _: mask)
    found = rounding(x)
    assert torch.equal(found[mask], x[mask])
    expected = torch.round(x / 0.5).clamp(-3, 252) * 0.5
    torch.testing.assert_close(found[~mask], expected[~mask])
    found.sum().backward()
    # By the scale, of its logarithm: what is rounded minus x inside, and the end of the range.
    places = x / 0.5
    slopes = torch.where(places < -3, torch.tensor(-3.0), places.round() - places) * 0.5
    torch.testing.assert_close(rounding.stretch.grad, slopes[~mask].sum())


@pytest.mark.parametrize("group", [None, 4])
def test_the_oracle_is_what_was_simulated(group: int | None) -> None:
    """With each weight at one of its ends, and nothing dropped."""
    torch.manual_seed(0)
    scheme = (
        octavo.Scheme("int4", symmetric=True, channel_axis=0)
        if group is None
        else octavo.Scheme("int4", symmetric=True, group_size=group)
    )
    qconfig = octavo.QConfig(FOUR_BITS.activation, octavo.QSpec(scheme, octavo.MinMax()))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    data = [torch.randn(32, 8) for _ in range(2)]
    graph, plan, quantized = prepared(net, data, qconfig)
    layers = quantized_layers(graph, plan)
    whole = Block((), tuple(graph.output_names()), tuple(layer.name for layer in layers))
    part = part_of(quantized, whole)
    free = {name for name, tensor in plan.quantized.items() if tensor.kind != "weight"}
    learned = Learned.of(part, layers, plan, free, lambda x: torch.zeros_like(x, dtype=torch.bool))
    assert len(learned.weights) == len(learned.biases) == 2
    with torch.no_grad():
        for each in (*learned.weights.values(), *learned.ranges.values()):
            each.stretch += 0.1 * torch.randn_like(each.stretch)
        for weight in learned.weights.values():
            weight.logits.copy_(20 * weight.logits.sign())
        for bias in learned.biases.values():
            bias += 0.1
        simulated = learned.program(plan)(data[0])[0]
    oracle = run_of(learned.applied_to(quantized, plan))(data[0])[0]
    assert float((simulated - oracle).abs().max()) < 1e-2 * float(oracle.abs().max())
    assert float((run_of(quantized)(data[0])[0] - oracle).abs().max()) > 0.05


def test_four_bits_lose_less(residual: tuple[Graph, Plan, Graph]) -> None:
    """On images that no block has seen."""
    graph, plan, quantized = residual
    chunks = Chunks.of([[batch] for batch in images()])
    found = reconstructed(graph, plan, quantized, chunks, Reconstruction(steps=120))
    assert (len(found.blocks), found.count) == (3, 3)
    assert found.together is not None
    assert not found.was_interrupted
    assert all(block.after_db > block.before_db for block in found.blocks if block.kept)
    fresh = images(4, seed=2)
    assert noise_db(graph, found.quantized, fresh) > noise_db(graph, quantized, fresh) + 2


def test_scales_and_biases_of_all_blocks_learn_together(
    residual: tuple[Graph, Plan, Graph],
) -> None:
    """On integers that stay, and behind blocks that have learned nothing."""
    graph, plan, quantized = residual
    chunks = Chunks.of([[batch] for batch in images()])
    walk = reconstruction._Walk(graph, plan, quantized, chunks, Reconstruction(steps=60))
    learned = walk.learn_together(None)
    assert (learned.block, learned.steps, learned.kept) == ("conv to fc", 60, True)
    weights = [n for n, t in quantized.constants.items() if not t.is_floating_point()]
    assert all(torch.equal(walk.quantized.constants[n], quantized.constants[n]) for n in weights)
    fresh = images(4, seed=2)
    before, after = (noise_db(graph, each, fresh) for each in (quantized, walk.quantized))
    assert after > before + 1


class OfFour(nn.Module):
    """Of batches of four alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(4, 8))


def test_one_batch_of_a_fixed_size_leaves_nothing_to_judge_on() -> None:
    batch, method = torch.randn(4, 8), Reconstruction(steps=2)
    with pytest.warns(octavo.OctavoWarning, match="judged on what it learned from.*two or more"):
        q = octavo.quantize(OfFour(), calibration=[batch], weights=[method], progress=False)
    assert "; judged on what they learned from" in q.provenance["steps"][-1]["why"]


def test_an_interruption_keeps_finished_blocks(
    residual: tuple[Graph, Plan, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, plan, quantized = residual
    chunks, method = Chunks.of([[batch] for batch in images(4)]), Reconstruction(steps=40)
    learn = reconstruction._Walk.learn

    def interrupted(self: reconstruction._Walk, at: int, seconds: float | None) -> object:
        if at == 1:
            raise KeyboardInterrupt
        return learn(self, at, seconds)

    monkeypatch.setattr(reconstruction._Walk, "learn", interrupted)
    found = reconstructed(graph, plan, quantized, chunks, method)
    assert [block.kept for block in found.blocks] == [True]
    assert found.count == 3
    assert found.was_interrupted
    changed = {
        name
        for name, tensor in found.quantized.constants.items()
        if not torch.equal(tensor, quantized.constants[name])
    }
    assert (
        {"conv.weight_scale", "conv.bias"}
        <= changed
        <= {"conv.weight_scale", "conv.bias", "conv.weight"}
    )
    q = octavo.quantize(
        ResidualNet().eval(),
        calibration=images(4),
        qconfig=FOUR_BITS,
        weights=[method],
        progress=False,
    )
    assert "1 of 3 blocks; interrupted" in q.provenance["steps"][-1]["why"]


def test_what_diverges_stays_as_it_was(
    residual: tuple[Graph, Plan, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_BIAS_RATE", math.nan)
    graph, plan, quantized = residual
    chunks = Chunks.of([[batch] for batch in images(4)])
    found = reconstructed(graph, plan, quantized, chunks, Reconstruction(steps=3))
    assert [(block.kept, block.diverged) for block in found.blocks] == [(False, True)] * 3
    assert found.quantized.nodes == quantized.nodes
    q = octavo.quantize(
        ResidualNet().eval(),
        calibration=images(4),
        qconfig=FOUR_BITS,
        weights=[Reconstruction(steps=3)],
        progress=False,
    )
    (step,) = q.provenance["steps"]
    assert not step["kept"]
    assert step["why"] == "no: 0 of 3 blocks; not finite, and as before: conv, conv2, fc"


def test_in_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """It comes last, in a row of its own, and what it gives runs on integers."""
    torch.manual_seed(0)
    model, data = ResidualNet().eval(), images()
    method = Reconstruction(steps=60)
    q = octavo.quantize(
        model, calibration=data, weights=[method, octavo.AdaRound(steps=20)], qconfig=FOUR_BITS
    )
    (step,) = q.provenance["steps"]
    assert step["step"] == "reconstruction"
    assert step["kept"]
    assert step["after_db"] > step["before_db"]
    assert q.provenance["weights"] == "adaround, bias_correction, reconstruction"
    assert "reconstruction" in capsys.readouterr().err
    fresh = images(1, seed=3)[0]
    with torch.no_grad():
        exact, found = q.lower("reference")(fresh), q.lower("torch")(fresh)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_what_it_is_not_for() -> None:
    method, data = Reconstruction(steps=2), images(1)
    model = ResidualNet().eval()
    for settings, words in (
        ({"scope": "modules"}, "octavo.Reconstruction is for a model .* scope='modules'"),
        ({"distributed": True}, "distributed=True"),
    ):
        with pytest.raises(InputError, match=words):
            octavo.quantize(model, calibration=data, weights=[method], **settings)
    graph = octavo.capture(model, data[0])
    with pytest.raises(PlanError, match=r"needs whole blocks.*'conv'.*octavo\.quantize"):
        octavo.calibrate(graph, octavo.plan(graph), data, weights=[method])
    with pytest.raises(InputError, match=r"steps is 0: give a whole number of 1 or more"):
        Reconstruction(steps=0)
    with pytest.raises(InputError, match=r"drop is 2"):
        Reconstruction(drop=2)


class Tied(nn.Module):
    """One layer twice, a table, and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(16, 8), nn.Linear(8, 8)
        self.gru, self.last = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.layer(self.table(x)).relu())
        result: Tensor = self.last(functional.relu(self.gru(y)[0].mean(1)))
        return result


def test_shared_weights_and_tables_stay_as_they_are() -> None:
    torch.manual_seed(0)
    data = [torch.randint(0, 16, (16, 6)) for _ in range(8)]
    graph, plan, quantized = prepared(Tied(), data, octavo.static_qconfig())
    chunks = Chunks.of([[batch] for batch in data])
    found = reconstructed(graph, plan, quantized, chunks, Reconstruction(steps=30))
    changed = {
        name
        for name, tensor in found.quantized.constants.items()
        if not torch.equal(tensor, quantized.constants[name])
    }
    assert changed
    assert not any(name.startswith(("layer.weight", "table")) for name in changed)


@pytest.mark.sweep
def test_trained_digits_of_four_bits() -> None:
    """Of a trained network, behind what rounds each layer by itself; on digits that nothing saw."""
    images, labels = digits()
    model = ResidualNet()
    model.conv, model.fc = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 10)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for chosen in torch.randperm(1200).repeat(12).split(64):
        adam.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        adam.step()
    data, fresh = list(images[:512].split(32)), list(images[1200:].split(200))
    rules = octavo.QConfigMapping().set_global(FOUR_BITS)
    graph = octavo.capture(model.eval(), data[0])
    plan = octavo.plan(graph, rules, "x86", "static")
    methods = (octavo.AdaRound(), octavo.BiasCorrection())
    calibrated = octavo.calibrate(graph, plan, data, weights=methods, progress=False)
    before = quantize_graph(graph, plan, calibrated.qparams, methods, calibrated.statistics)
    found = reconstructed(graph, plan, before, Chunks.of([[x] for x in data]), Reconstruction())
    assert noise_db(graph, found.quantized, fresh) > noise_db(graph, before, fresh) + 1


def digits() -> tuple[Tensor, Tensor]:
    """float32 ``[1797, 1, 8, 8]``, and the labels."""
    found = load_digits()
    return torch.from_numpy(found.images).float().unsqueeze(1) / 8 - 1, torch.tensor(found.target)
