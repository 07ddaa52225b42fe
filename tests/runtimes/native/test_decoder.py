from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtimes.native.test_products import eight_bits, of_four_bits

from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.decoder import Block, Caches, Decoder, Norm

FUNCTIONS = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


class Case:
    """Blocks with weights of chance, in both forms: native, and float64."""

    def __init__(
        self,
        blocks=2,
        width=64,
        inner=96,
        shared=1,
        times=2,
        channels=16,
        bits=8,
        normed=False,
        biased=False,
        more=0.0,
        activation=Activation.SILU,
        seed=0,
    ):
        torch.manual_seed(seed)
        self.heads, self.shared, self.channels, self.width = shared * times, shared, channels, width
        self.bits, self.inner, self.biased, self.more = bits, inner, biased, more
        self.exact, made = [], []
        for _ in range(blocks):
            weights, block = self.block(normed, activation)
            self.exact.append(weights)
            made.append(block)
        self.decoder = Decoder(made)

    def block(self, normed, activation):
        attended, kept = self.heads * self.channels, self.shared * self.channels
        sizes = {
            "query": (attended, self.width),
            "key": (kept, self.width),
            "value": (kept, self.width),
            "out": (self.width, attended),
            "gate": (self.inner, self.width),
            "up": (self.inner, self.width),
            "down": (self.width, self.inner),
        }
        exact, layers, norms = {"activation": activation}, {}, {}
        for index, (name, (rows, columns)) in enumerate(sizes.items()):
            four = self.bits == 4 or (self.bits == 0 and index % 2)
            layer, weight = (
                of_four_bits(rows, columns // 32, 32)
                if four and columns % 32 == 0
                else eight_bits(rows, columns)
            )
            factor = 0.5 / weight.std() / columns**0.5  # so that sums are some ones
            bias = torch.randn(rows) if self.biased else torch.zeros(rows)
            self.scale(layer, float(factor))
            layers[name] = layer.with_bias(bias) if self.biased else layer
            exact[name] = (weight * float(factor), bias.double())
        names = {"before_attention": self.width, "before_gate": self.width}
        names |= dict.fromkeys(("of_queries", "of_keys"), self.channels) if normed else {}
        for name, size in names.items():
            weight = torch.randn(size)
            norms[name] = Norm(weight, 1e-5, self.more)
            exact[name] = weight.double() + self.more
        scale = self.channels**-0.5
        sizes = (self.heads, self.shared, self.channels, scale)
        return exact, Block(layers, norms, *sizes, activation)

    @staticmethod
    def scale(layer, factor):
        scales = next(t for t in layer._held if t.dtype == torch.float32)
        scales.mul_(factor)

    def caches(self, batch, room):
        shape = (batch, self.shared, room, self.channels)
        return Caches([(torch.randn(shape), torch.randn(shape)) for _ in self.exact])

    def expected(self, x, rotary, pairs, past, mask):
        x = x.double()
        for exact, (keys, values) in zip(self.exact, pairs, strict=True):
            x = self.of_block(exact, x, rotary, keys, values, past, mask)
        return x

    def of_block(self, exact, x, rotary, keys, values, past, mask):
        """Writes what the cache is to keep, in float64."""
        cosine, sine = (t.double()[:, None] for t in rotary)

        def project(name, x):
            weight, bias = exact[name]
            return x @ weight.T + bias

        def norm(name, x):
            if name not in exact:
                return x
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * exact[name]

        def heads(name, x, count):
            return project(name, x).reshape(*x.shape[:2], count, self.channels).transpose(1, 2)

        def turned(x):
            first, second = x.chunk(2, -1)
            return x * cosine + torch.cat([-second, first], -1) * sine

        normed, tokens = norm("before_attention", x), x.shape[1]
        query = turned(norm("of_queries", heads("query", normed, self.heads)))
        keys[:, :, past : past + tokens] = turned(
            norm("of_keys", heads("key", normed, self.shared))
        )
        values[:, :, past : past + tokens] = heads("value", normed, self.shared)
        sources = past + tokens if mask is None else mask.shape[3]
        k, v = (
            t[:, :, :sources].repeat_interleave(self.heads // self.shared, 1)
            for t in (keys, values)
        )
        scores = query @ k.transpose(2, 3) * self.channels**-0.5
        if mask is not None:
            hidden = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else None
            scores = scores + mask.double() if hidden is None else hidden
        attended = (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2)
        x = x + project("out", attended)
        normed = norm("before_gate", x)
        function = FUNCTIONS[exact["activation"]]
        return x + project("down", function(project("gate", normed)) * project("up", normed))


def call(case, batch, tokens, past, mask, room=0):
    """What the native blocks and the exact ones make; and what both keep."""
    x = torch.randn(batch, tokens, case.width)
    angles = torch.rand(batch, tokens, case.channels // 2).repeat(1, 1, 2) * 6
    rotary = (angles.cos(), angles.sin())
    sources = past + tokens if mask is None else mask.shape[3]
    caches = case.caches(batch, sources + room)
    pairs = [tuple(t.double() for t in pair) for pair in caches.pairs]
    exact = case.expected(x, rotary, pairs, past, mask)
    have = case.decoder(x, rotary, caches, past, mask)
    return have, exact, caches.pairs, pairs


def assert_near(have, want):
    assert float((have.double() - want).norm() / want.norm()) < 3e-4


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    width=st.sampled_from([32, 40, 64, 160]),
    inner=st.sampled_from([17, 64, 96, 224]),
    shared=st.integers(1, 3),
    times=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 64, 72]),
    bits=st.sampled_from([0, 4, 8]),
    normed=st.booleans(),
    biased=st.booleans(),
    more=st.sampled_from([0.0, 1.0]),
    activation=st.sampled_from(list(FUNCTIONS)),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 3),
    past=st.integers(0, 40),
    kind=st.sampled_from(["none", "bool", "float"]),
    seed=st.integers(0, 99),
)
def test_blocks_are_those_of_dequantized_weights(
    instruction_set, batch, tokens, past, kind, **sizes
):
    case = Case(**sizes)
    mask = None
    if kind != "none" or tokens > 1:
        seen = torch.rand(batch, 1, tokens, past + tokens) < 0.7
        seen[..., past] = True  # one of them at least
        mask = torch.zeros(seen.shape).masked_fill(~seen, -1e9) if kind == "float" else seen
    have, exact, kept, wanted = call(case, batch, tokens, past, mask, room=3)
    assert_near(have, exact)
    for pair, right in zip(kept, wanted, strict=True):
        for ours, theirs in zip(pair, right, strict=True):
            assert_near(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Case(blocks=3, width=320, inner=640, shared=3, times=3, channels=64, bits=0)
        have, exact, _, _ = call(case, 2, 1, 100, None)
        assert_near(have, exact)
    finally:
        torch.set_num_threads(before)


def test_a_row_that_sees_nothing_attends_to_nothing(instruction_set):
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1] = False
    have, exact, _, _ = call(Case(), 2, 1, 5, mask)
    assert_near(have, exact)


@pytest.mark.parametrize("where", ["x", "keys"])
def test_what_is_not_finite_is_told(instruction_set, where):
    case = Case()
    x, angles = torch.randn(1, 1, 64), torch.rand(1, 1, 16)
    caches = case.caches(1, 5)
    (x if where == "x" else caches.pairs[1][0][0, 0]).view(-1)[3] = float("nan")
    assert case.decoder(x, (angles, angles), caches, 4) is None


def test_what_does_not_fit_is_refused():
    case = Case()
    x, turn = torch.randn(1, 1, 64), torch.rand(1, 1, 16)
    two = torch.randn(1, 2, 64)
    for rows, rotary, caches, past, message in (
        (x[..., :32], turn, case.caches(1, 5), 4, "in caches"),
        (x, turn, case.caches(2, 5), 4, "in caches"),
        (x, turn, case.caches(1, 5), 5, "in caches"),
        (two, turn.repeat(1, 2, 1), case.caches(1, 9), 5, "several tokens need a mask"),
        (x, turn, Case(blocks=1).caches(1, 5), 4, "in caches"),
        (x.double(), turn, case.caches(1, 5), 4, "float32"),
        (x, turn[..., :8].contiguous(), case.caches(1, 5), 4, "a rotation of"),
    ):
        with pytest.raises(ValueError, match=message):
            case.decoder(rows, (rotary, rotary), caches, past)
    with pytest.raises(ValueError, match=r"a mask of torch\.int64"):
        case.decoder(x, (turn, turn), case.caches(1, 5), 4, torch.ones(1, 1, 1, 5).long())
    with pytest.raises(ValueError, match="whose tokens stand apart"):
        Caches([(torch.randn(1, 5, 2, 16).transpose(1, 2),) * 2])
    with pytest.raises(ValueError, match=r"values of torch\.bfloat16"):
        Caches([(torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16).bfloat16())])
    with pytest.raises(ValueError, match="blocks of different sizes"):
        Decoder([case.decoder.blocks[0], Case(times=1).decoder.blocks[0]])
    other = Case(inner=64).decoder.blocks[0]
    layers = {**case.decoder.blocks[0].layers, "down": other.layers["down"]}
    block = Block(layers, other.norms, 2, 1, 16, 0.25, Activation.SILU)
    with pytest.raises(ValueError, match="the down is not 64 x 96"):
        Decoder([block])
