from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtimes.native.test_products import eight_bits, of_four_bits

from octavo.model.language.int8_rows import to_floats, to_rows
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.decoder import Block, Cache, Caches, Decoder, Norm, Places

FUNCTIONS = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.CLIP: F.relu,
}
OTHER_NORMS = ("after_attention", "after_down")


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
        centered=False,
        normed_behind=False,
        gated=True,
        fused=False,
        turned=None,
        window=0,
        softcap=0.0,
        sloped=False,
        parallel=False,
    ):
        torch.manual_seed(seed)
        self.heads, self.shared, self.channels, self.width = shared * times, shared, channels, width
        self.bits, self.inner, self.biased, self.more = bits, inner, biased, more
        self.normed, self.normed_behind, self.centered = normed, normed_behind, centered
        self.gated, self.fused, self.window, self.softcap = gated, fused, window, softcap
        self.turned = channels if turned is None else turned
        self.parallel, self.activation = parallel, activation
        self.slopes = torch.rand(self.heads) / 8 if sloped else None
        self.exact, made = [], []
        for index in range(blocks):
            weights, block = self.block(index)
            self.exact.append(weights)
            made.append(block)
        self.decoder = Decoder(made)

    def sizes(self):
        attended, kept = self.heads * self.channels, self.shared * self.channels
        separate = {
            "query": (attended, self.width),
            "key": (kept, self.width),
            "value": (kept, self.width),
        }
        fused = {"query": (attended + 2 * kept, self.width)}
        up = {"up": (self.inner, self.width)} if self.gated else {}
        return {
            **(fused if self.fused else separate),
            "out": (self.width, attended),
            "gate": (self.inner, self.width),
            **up,
            "down": (self.width, self.inner),
        }

    def places(self):
        """Of a fused layer: the queries of a head of the keys, the key, and the value."""
        step = (self.heads // self.shared + 2) * self.channels
        if not self.fused or self.heads != self.shared:
            attended, kept = self.heads * self.channels, self.shared * self.channels
            starts = (0, attended, attended + kept) if self.fused else (0, 0, 0)
            steps = (self.channels,) * 3
        else:
            starts, steps = (0, self.channels, 2 * self.channels), (step,) * 3
        names = ("query", "key", "value")
        return {
            name: Places("query" if self.fused else name, start, step)
            for name, start, step in zip(names, starts, steps, strict=True)
        }

    def block(self, index):
        exact, layers, norms = {}, {}, {}
        for at, (name, (rows, columns)) in enumerate(self.sizes().items()):
            four = self.bits == 4 or (self.bits == 0 and at % 2)
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
        names |= dict.fromkeys(("of_queries", "of_keys"), self.channels) if self.normed else {}
        names |= dict.fromkeys(OTHER_NORMS, self.width) if self.normed_behind else {}
        for name, size in names.items():
            weight, bias = torch.randn(size), torch.randn(size) if self.centered else None
            norms[name] = Norm(weight, 1e-5, self.more, bias, self.centered)
            exact[name] = weight.double() + self.more, 0 if bias is None else bias.double()
        self.windows = getattr(self, "windows", [])
        self.windows.append(self.window if index % 2 == 0 else 0)
        block = Block(
            layers,
            norms,
            self.heads,
            self.shared,
            self.channels,
            self.channels**-0.5,
            self.activation,
            places=self.places() if self.fused else {},
            turned=self.turned,
            window=self.windows[-1],
            softcap=self.softcap,
            slopes=self.slopes,
            is_parallel=self.parallel,
        )
        return exact | {"window": self.windows[-1]}, block

    @staticmethod
    def scale(layer, factor):
        scales = next(t for t in layer._held if t.dtype == torch.float32)
        scales.mul_(factor)

    def caches(self, past, room):
        shape = (len(past), self.shared, room, self.channels)
        pairs = [(torch.randn(shape), torch.randn(shape)) for _ in self.exact]
        return pairs, Caches([Cache(*pair, past) for pair in pairs], self.decoder.blocks)

    def expected(self, x, rotary, pairs, past, mask, rounded=False):
        x = x.double()
        for exact, (keys, values) in zip(self.exact, pairs, strict=True):
            x = self.of_block(exact, x, rotary, keys, values, past, mask, rounded)
        return x

    def of_block(self, exact, x, rotary, keys, values, past, mask, rounded):
        """Writes what the cache is to keep, in float64."""
        cosine, sine = (t.double()[:, None] for t in rotary)

        def project(name, x):
            weight, bias = exact[name]
            return x @ weight.T + bias

        def norm(name, x):
            if name not in exact:
                return x
            x = x - x.mean(-1, keepdim=True) if self.centered else x
            weight, bias = exact[name]
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight + bias

        def heads(name, x, count):
            at = self.places()[name]
            rows = project(at.layer, x)
            starts = [at.start + head * at.step for head in range(count)]
            each = [rows[..., start : start + self.channels] for start in starts]
            return torch.stack(each, 1)

        def rotated(x):
            turned, rest = x[..., : self.turned], x[..., self.turned :]
            first, second = turned.chunk(2, -1)
            turned = turned * cosine + torch.cat([-second, first], -1) * sine
            return torch.cat([turned, rest], -1)

        normed, tokens, texts = norm("before_attention", x), x.shape[1], range(len(x))
        query = rotated(norm("of_queries", heads("query", normed, self.heads)))
        key = rotated(norm("of_keys", heads("key", normed, self.shared)))
        value = heads("value", normed, self.shared)
        if rounded:
            key, value = (to_floats(to_rows(t.float())).double() for t in (key, value))
        sources = int(past.max()) + tokens
        visible = torch.zeros(len(x), 1, tokens, sources, dtype=torch.bool)
        for text in texts:
            end = int(past[text]) + tokens
            keys[text, :, end - tokens : end] = key[text]
            values[text, :, end - tokens : end] = value[text]
            ones = torch.ones(tokens, sources, dtype=torch.bool).tril(end - tokens)
            last = exact["window"] or sources
            visible[text] = ones & ~torch.ones_like(ones).tril(end - tokens - last)
        k, v = (
            t[:, :, :sources].repeat_interleave(self.heads // self.shared, 1)
            for t in (keys, values)
        )
        scores = query @ k.transpose(2, 3) * self.channels**-0.5
        if self.softcap:
            scores = (scores / self.softcap).tanh() * self.softcap
        if self.slopes is not None:
            scores = scores + self.slopes.double()[:, None, None] * torch.arange(sources)
        scores = scores.masked_fill(~visible, -torch.inf)
        if mask is not None:
            hidden = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else None
            scores = scores + mask.double() if hidden is None else hidden
        attended = (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2)
        y = x + norm("after_attention", project("out", attended))
        normed = norm("before_gate", x if self.parallel else y)
        opened = FUNCTIONS[self.activation](project("gate", normed))
        opened = opened * project("up", normed) if self.gated else opened
        return y + norm("after_down", project("down", opened))


def call(case, past, tokens, mask, room=0, rounded=False):
    """What the native blocks and the exact ones make; and what both keep."""
    batch, past = len(past), torch.tensor(past)
    x = torch.randn(batch, tokens, case.width)
    angles = torch.rand(batch, tokens, case.turned // 2).repeat(1, 1, 2) * 6
    rotary = (angles.cos(), angles.sin())
    kept, caches = case.caches(past, int(past.max()) + tokens + room)
    pairs = [tuple(t.double() for t in pair) for pair in kept]
    exact = case.expected(x, rotary, pairs, past, mask)
    have = case.decoder(x, [rotary], caches, mask, rounded=rounded)
    return have, exact, kept, pairs


def assert_near(have, want, most=3e-4):
    assert float((have.double() - want).norm() / want.norm()) < most


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
    centered=st.booleans(),
    normed_behind=st.booleans(),
    gated=st.booleans(),
    fused=st.booleans(),
    turned=st.sampled_from([None, 0, 4]),
    window=st.sampled_from([0, 1, 9]),
    softcap=st.sampled_from([0.0, 3.0]),
    sloped=st.booleans(),
    parallel=st.booleans(),
    past=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    tokens=st.sampled_from([1, 3, 37]),
    kind=st.sampled_from(["none", "bool", "float"]),
    seed=st.integers(0, 99),
)
def test_blocks_are_those_of_dequantized_weights(instruction_set, past, tokens, kind, **sizes):
    case = Case(**sizes)
    mask = None
    if kind != "none":
        past = [past[0]] * len(past)
        seen = torch.rand(len(past), 1, 1, past[0] + tokens) < 0.7
        seen[..., past[0]] = True  # one of them at least
        mask = torch.zeros(seen.shape).masked_fill(~seen, -1e9) if kind == "float" else seen
    if sizes["window"] and kind != "none":
        mask = None
    have, exact, kept, wanted = call(case, past, tokens, mask, room=3)
    assert_near(have, exact)
    for pair, right in zip(kept, wanted, strict=True):
        for ours, theirs in zip(pair, right, strict=True):
            assert_near(ours, theirs)


@pytest.mark.parametrize("tokens", [1, 3, 37])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"channels": 72, "shared": 2, "times": 1}, {"channels": 8, "window": 9, "blocks": 3}],
    ids=["", "more channels", "a window"],
)
def test_a_cache_in_int8_is_one_of_rounded_floats(instruction_set, sizes, tokens):
    case = Case(**sizes)
    past, x = torch.tensor([21, 4]), torch.randn(2, tokens, case.width)
    angles = torch.rand(2, tokens, case.turned // 2).repeat(1, 1, 2) * 6
    rotary, room = (angles.cos(), angles.sin()), 24 + tokens
    floats, _ = case.caches(past, room)
    rows = [tuple(map(to_rows, pair)) for pair in floats]
    caches = Caches([Cache(*pair, past) for pair in rows], case.decoder.blocks)
    have = case.decoder(x, [rotary], caches)
    kept = [tuple(to_floats(t).double() for t in pair) for pair in rows]
    wanted = [tuple(t.clone() for t in pair) for pair in kept]
    exact = case.expected(x, rotary, wanted, past, None, rounded=True)
    assert_near(have, exact, 2e-3)
    for pair, right in zip(kept, wanted, strict=True):
        for ours, theirs in zip(pair, right, strict=True):
            assert_near(ours, theirs, 2e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Case(blocks=3, width=320, inner=640, shared=3, times=3, channels=64, bits=0)
        for tokens in (1, 70):
            have, exact, _, _ = call(case, [100, 80], tokens, None)
            assert_near(have, exact)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_may_be_rounded_to_eight_bits(instruction_set, bits):
    have, exact, _, _ = call(Case(bits=bits), [5], 40, None, rounded=True)
    error = float((have.double() - exact).norm() / exact.norm())
    assert 1e-3 < error < 5e-2


def test_a_row_that_sees_nothing_attends_to_nothing(instruction_set):
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1] = False
    have, exact, _, _ = call(Case(), [5, 5], 1, mask)
    assert_near(have, exact)


@pytest.mark.parametrize("where", ["x", "keys"])
def test_what_is_not_finite_is_told(instruction_set, where):
    case = Case()
    x, angles = torch.randn(1, 1, 64), torch.rand(1, 1, 16)
    pairs, caches = case.caches(torch.tensor([4]), 5)
    (x if where == "x" else pairs[1][0][0, 0]).view(-1)[3] = float("nan")
    assert case.decoder(x, [(angles, angles)], caches) is None


def test_what_does_not_fit_is_refused():
    case = Case()
    x, turn = torch.randn(1, 1, 64), torch.rand(1, 1, 16)

    def caches(*past, room=5):
        return case.caches(torch.tensor(past), room)[1]

    for rows, rotary, kept, message in (
        (x[..., :32], turn, caches(4), "for caches of 1 texts"),
        (x, turn, caches(4, 4), "for caches of 2 texts"),
        (x, turn, caches(5), "1 tokens behind 5 in caches of 5"),
        (x, turn, caches(-1), "in caches of 5"),
        (x.double(), turn, caches(4), "float32"),
        (x, turn[..., :8].contiguous(), caches(4), "a rotation of"),
    ):
        with pytest.raises(ValueError, match=message):
            case.decoder(rows, [(rotary, rotary)], kept)
    with pytest.raises(ValueError, match="0 rotations"):
        case.decoder(x, [], caches(4))
    with pytest.raises(ValueError, match=r"a mask of torch\.int64"):
        case.decoder(x, [(turn, turn)], caches(4), torch.ones(1, 1, 1, 5).long())
    with pytest.raises(ValueError, match="a mask of 4 tokens for 5"):
        case.decoder(x, [(turn, turn)], caches(4), torch.ones(1, 1, 1, 4).bool())
    blocks, one = Case(blocks=1).decoder.blocks, torch.tensor([4])
    keys = torch.randn(1, 1, 5, 16)
    for cache, message in (
        (Cache(*(torch.randn(1, 5, 1, 32)[..., :16].transpose(1, 2),) * 2, one), "stand apart"),
        (Cache(keys, keys.bfloat16(), one), r"values of torch\.bfloat16"),
        (Cache(keys, keys, one.int()), r"so many tokens before: torch\.int32"),
        (Cache(*(torch.randn(1, 2, 5, 16),) * 2, one), r"caches \[1, 2, 5, 16\] for 1 texts"),
        (Cache(keys.to(torch.int8), keys.to(torch.int8), one), r"caches \[1, 1, 5, 16\] for 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Caches([cache], blocks)
    with pytest.raises(ValueError, match="1 caches for 2 blocks"):
        Caches([Cache(keys, keys, one)], case.decoder.blocks)
    with pytest.raises(ValueError, match="blocks of different sizes"):
        Decoder([case.decoder.blocks[0], Case(width=32).decoder.blocks[0]])
    with pytest.raises(ValueError, match="different numbers of channels"):
        Decoder([case.decoder.blocks[0], Case(turned=4).decoder.blocks[0]])
    first, other = case.decoder.blocks[0], Case(inner=64).decoder.blocks[0]
    for change, message in (
        ({"layers": {**first.layers, "down": other.layers["down"]}}, "the down is not 64 x 96"),
        ({"layers": {"query": first.layers["query"]}}, "there is no down"),
        ({"places": {"key": Places("key", 8, 16)}}, "the heads of the key do not stand in key"),
        ({"turned": 18}, "18 of 16 channels are rotated"),
        ({"slopes": torch.ones(3)}, "slopes of 2 heads"),
    ):
        with pytest.raises(ValueError, match=message):
            Decoder([replace(first, **change)])
