"""`octavo.quantize` with networks whose ``forward`` asks tensors for their values."""

from __future__ import annotations

import itertools
import warnings

import torch
from decibel import sqnr_db
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import octavo
from octavo.flow.regions import regions_of

WIDTH, CLASSES = 32, 5


def layers(*widths: int) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(part for a, b in pairs for part in (nn.Linear(a, b), nn.ReLU())))


def built(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(net: nn.Module, batches: list[object]) -> nn.Module:
    """By the user's one line, and the user's model is as it was."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        q = octavo.quantize(net, calibration=batches, target=octavo.host_target(), progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    return q


def check(net: nn.Module, q: nn.Module, calls: list[tuple[Tensor, ...]]) -> None:
    with torch.no_grad():
        for call in calls:
            assert sqnr_db(net(*call), q(*call)) > 20


class Experts(nn.Module):
    """A mixture of experts: each row goes to the one that its scores choose, ``[N, 32]``."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = layers(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(layers(WIDTH, 64, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights, chosen = self.gate(x).softmax(-1).max(-1)
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                result = result.index_add(0, rows, weights[rows, None] * expert(x[rows]))
        return result


def test_experts_are_regions_and_routing_stays() -> None:
    net = built(Experts)
    net.gate.weight.data *= 10  # clear decisions, as after training
    q = quantized(net, [normal(64, WIDTH, seed=s) for s in range(3)])
    assert type(q) is Experts
    assert {"enter", *(f"experts.{i}" for i in range(3))} <= set(regions_of(q))
    assert octavo.summary(q).coverage.share >= 0.95
    with torch.no_grad():
        for count in (1, 7, 200):
            x = normal(count, WIDTH, seed=9)
            wanted, got = net(x), q(x)
            rows = (wanted - got).norm(dim=1) < 0.2 * wanted.norm(dim=1)
            assert rows.float().mean() > 0.9  # the others were on the edge of two experts


class Loops(nn.Module):
    """``while`` and ``if`` on values: a layer until the state is small, then one of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.step = layers(WIDTH, 64, WIDTH)
        self.heads = nn.ModuleList(layers(WIDTH, 64, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        steps = 0
        while float(x.abs().mean()) > 0.1 and steps < 5:
            x = 0.5 * x + 0.2 * self.step(x)
            steps += 1
        if float(x[:, 0].sum()) > 0:
            scores: Tensor = self.heads[0](x)
        else:
            scores = self.heads[1](x)
        return scores + steps


def test_loops_and_branches_on_values_are_walked_anew_at_each_call() -> None:
    net = built(Loops)
    batches = [sign * normal(16, WIDTH, seed=s).abs() for s in range(3) for sign in (1.0, -1.0)]
    q = quantized(net, batches)
    assert type(q) is Loops
    assert set(regions_of(q)) == {"step", "heads.0", "heads.1"}
    assert octavo.summary(q).coverage.share >= 0.95
    calls = [(scale * normal(n, WIDTH, seed=9).abs(),) for n in (1, 5) for scale in (1.0, -1, 0.05)]
    check(net, q, calls)
    with torch.no_grad():
        steps = {int(net(*call).mean().round()) for call in calls}
    assert len(steps) > 1  # calls differ in how often the loop runs


class Tagger(nn.Module):
    """``[N, T, 16]`` and lengths -> ``[N, T, 5]`` by a GRU over a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = layers(16, WIDTH)
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = layers(2 * WIDTH, 64, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.enter(x), lengths.tolist(), batch_first=True, enforce_sorted=False
        )
        read, _ = self.recurrent(packed)
        assert isinstance(read, PackedSequence)
        scores: Tensor = self.head(pad_packed_sequence(read, batch_first=True)[0])
        return scores


def test_a_gru_over_packed_sequences_stays_and_what_is_around_it_is_quantized() -> None:
    net = built(Tagger)
    batches = [
        (normal(4, length, 16, seed=length), torch.tensor([length, 3, 5, 2]))
        for length in (6, 9, 12)
    ]
    q = quantized(net, batches)
    assert set(regions_of(q)) == {"enter", "head"}
    assert type(q.recurrent) is nn.GRU
    check(net, q, [(normal(2, n, 16, seed=1), torch.tensor([n, 2])) for n in (3, 30)])


class Messages(nn.Module):
    """Nodes ``[V, 16]``, edges ``[2, E]`` -> ``[V, 5]``: messages are added up by scattering."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, WIDTH)
        self.message, self.update = layers(2 * WIDTH, WIDTH), layers(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.enter(nodes)
        sent = self.message(torch.cat([x[edges[0]], x[edges[1]]], 1))
        heard = torch.zeros_like(x).index_add(0, edges[1], sent)
        degrees = x.new_zeros(x.shape[0]).scatter_add(0, edges[1], torch.ones(edges.shape[1]))
        heard = heard / degrees.clamp(min=1)[:, None]
        scores: Tensor = self.head(self.update(torch.cat([x, heard], 1)))
        return scores


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(edges)
    return normal(nodes, 16, seed=nodes), torch.randint(nodes, (2, edges), generator=generator)


def test_a_network_on_graphs_is_one_graph_for_any_number_of_nodes_and_edges() -> None:
    net = built(Messages)
    q = quantized(net, [graph(20, 60), graph(15, 40), graph(30, 70)])
    assert isinstance(q, octavo.QuantizedModel)
    assert octavo.summary(q).coverage.share >= 0.95
    check(net, q, [graph(20, 61), graph(50, 10), graph(7, 300)])
