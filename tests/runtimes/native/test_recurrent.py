from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.native import recurrent
from octavo.runtimes.native.matrix import How

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Case:
    """A layer whose weights are integers, and sequences; what the oracle makes of them."""

    def __init__(
        self, kind, layers, bidirectional, batch_first, bias, sizes, how, seed=0, size=1.0
    ):
        torch.manual_seed(seed)
        steps, batch, inputs, hidden = sizes
        make, more = LAYERS[kind]
        layer = make(
            inputs,
            hidden,
            layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            **more,
        )
        self.tensors = []
        for name, weight in layer.named_parameters():
            if weight.dim() == 2:
                scale = weight.detach().abs().amax(1) / 127
                q = (weight / scale[:, None]).round().to(torch.int8)
                weight.data = q * scale[:, None]
                given = getattr(layer, name.replace("weight", "bias")) if bias else None
                given = None if given is None else given.detach()
                of_state = "_hh_" in name
                self.tensors += recurrent.packed(kind, q, scale, given, of_state).tensors
        directions = layers * (1 + bidirectional)
        count = 1 + (kind == "lstm")
        self.states = [size * torch.randn(directions, batch, hidden) for _ in range(count)]
        shape = (batch, steps) if batch_first else (steps, batch)
        x = 3 * size * torch.randn(*shape, inputs)
        self.settings = {"kind": kind, "bidirectional": bidirectional, "batch_first": batch_first}
        self.settings |= {"how": how, "low": 0, "high": 255, "symmetric": False}
        self.settings |= {"scale": 1.0, "zero_point": 0}
        self.x, read = x, x
        if how is How.INTEGERS:
            self.x = torch.randint(0, 256, x.shape, dtype=torch.uint8)
            self.settings |= {"scale": 0.02, "zero_point": 120}
            read = (self.x.float() - 120) * 0.02
        elif how is not How.FLOATS:
            per_token = how is How.ROW_RANGE
            read = octavo_operators.fake_quantize_dynamic(x, 0, 255, False, per_token)
        self.layer, self.read = layer.double(), read.double()
        self.expected = self.exact(self.read)

    @torch.no_grad()
    def exact(self, read):
        """What torch makes of sequences, padded or packed, if states are rounded as here."""
        hx = [t.double() for t in self.states]
        if self.settings["how"] is not How.FLOATS:
            batch_first = self.settings["batch_first"]
            if isinstance(read, Tensor):
                return of_rounded_states(self.layer, read, hx, batch_first)
        is_lstm = self.settings["kind"] == "lstm"
        out, states = self.layer(read, tuple(hx) if is_lstm else hx[0])
        return [out, *(states if is_lstm else [states])]

    def run(self, x=None, states=None, batch_sizes=None):
        h0, *c0 = self.states if states is None else states
        given = (self.x if x is None else x, h0, c0[0] if c0 else None, self.tensors)
        results = recurrent.recurrent(*given, **self.settings, batch_sizes=batch_sizes)
        return results[: len(self.expected)]

    def agrees(self):
        """Rounding states to 16 bits is all that differs; where it is to eight, few integers of
        states are a step off.
        """
        is_rounded = self.settings["how"] is not How.FLOATS
        for have, want in zip(self.run(), self.expected, strict=True):
            assert have.shape == want.shape
            off, size = (have.double() - want).abs(), max(1, want.abs().max().item())
            assert off.max() <= (2e-2 if is_rounded else 5e-4) * size
            if is_rounded:
                assert off.square().mean().sqrt() <= 1e-3 * size


@torch.no_grad()
def of_rounded_states(layer, x, states, batch_first):
    """What a layer makes of padded sequences if the rows of its states, and of what further layers
    read, are rounded to 8 bits.
    """

    def rounded(rows):
        return octavo_operators.fake_quantize_dynamic(rows.float(), 0, 255, False, True).double()

    x = x.transpose(0, 1) if batch_first else x
    both, ends = 1 + layer.bidirectional, [[] for _ in states]
    for index in range(layer.num_layers * both):
        if index % both == 0:
            read, outs = rounded(x) if index else x, []
        name = f"l{index // both}{'_reverse' * (index % both)}"
        names = [f"{kind}_{name}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w, u, *biases = [getattr(layer, n) for n in names if hasattr(layer, n)]
        a, b = biases or (0, 0)
        h, *c = [state[index] for state in states]
        steps = range(len(x))[::-1] if index % both else range(len(x))
        made = [None] * len(x)
        for step in steps:
            of_input, of_state = read[step] @ w.T + a, rounded(h) @ u.T + b
            if isinstance(layer, nn.LSTM):
                i, f, g, o = (of_input + of_state).chunk(4, 1)
                c[0] = f.sigmoid() * c[0] + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c[0].tanh()
            elif isinstance(layer, nn.GRU):
                (r, z, n), (rh, zh, nh) = of_input.chunk(3, 1), of_state.chunk(3, 1)
                n = (n + (r + rh).sigmoid() * nh).tanh()
                h = n + (z + zh).sigmoid() * (h - n)
            else:
                h = getattr(torch, layer.nonlinearity)(of_input + of_state)
            made[step] = h
        outs.append(torch.stack(made))
        for end, state in zip(ends, (h, *c), strict=True):
            end.append(state)
        x = torch.cat(outs, 2)
    return [x.transpose(0, 1) if batch_first else x, *(torch.stack(end) for end in ends)]


STACKS = {
    "kind": st.sampled_from(list(LAYERS)),
    "layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
    "bias": st.booleans(),
}
sizes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 40), st.integers(1, 50))


@examples(40)
@given(
    **STACKS,
    batch_first=st.booleans(),
    sizes=sizes,
    how=st.sampled_from(list(How)),
    seed=st.integers(0, 99),
)
def test_every_layer_is_the_oracles(instruction_set, **case):
    Case(**case).agrees()


def case(**changed):
    known = {"kind": "lstm", "layers": 1, "bidirectional": False, "batch_first": True, "bias": True}
    return Case(**known | {"sizes": (4, 2, 8, 16), "how": How.FLOATS} | changed)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_long_sequences_batches_and_threads(instruction_set, kind, threads):
    """More steps than whose sums are kept at a time, and states that several threads share."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case(kind=kind, sizes=(40, 32, 20, 200), how=How.ROW_RANGE).agrees()
    finally:
        torch.set_num_threads(before)


def test_wide_rows_do_not_overflow(instruction_set):
    """More columns than products are summed of in 32 bits, all of one sign."""
    wide = case(kind="rnn_relu", sizes=(1, 1, 5000, 16))
    wide.tensors[0].fill_(127)
    wide.tensors[2].fill_(127 * 5000)
    wide.x.fill_(3.0)
    wide.states[0].zero_()
    have = wide.run()[0]
    scale, bias = wide.tensors[1], wide.tensors[3] + wide.tensors[7]
    torch.testing.assert_close(
        have.flatten(), 127 * 3.0 * 5000 * scale + bias, rtol=1e-5, atol=1e-3
    )


def test_values_that_are_not_finite_stay_so(instruction_set):
    for how in (How.FLOATS, How.ROW_RANGE, How.TENSOR_RANGE):
        broken = case(how=how)
        broken.x[1, 2, 3] = float("nan")
        out = broken.run()[0]
        assert out[1, 2:].isnan().all()
        if how is not How.TENSOR_RANGE:
            assert out[0].isfinite().all()
            assert out[1, :2].isfinite().all()


@pytest.mark.parametrize("kind", list(LAYERS))
def test_tiny_values_are_as_exact_as_others(instruction_set, kind):
    """Inputs whose units are much too large for them."""
    tiny = case(kind=kind, bias=False, size=1e-9)
    for have, want in zip(tiny.run(), tiny.expected, strict=True):
        torch.testing.assert_close(have.double() / 1e-9, want / 1e-9, atol=1e-3, rtol=0)


def test_other_memory_orders_are_read_right(instruction_set):
    turned = case()
    turned.x = turned.x.transpose(0, 1).contiguous().transpose(0, 1)
    turned.states = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in turned.states]
    turned.agrees()


def test_calls_from_several_threads(instruction_set):
    from concurrent.futures import ThreadPoolExecutor

    shared = case(sizes=(12, 4, 20, 160))
    with ThreadPoolExecutor(4) as pool:
        for outcome in [pool.submit(shared.agrees) for _ in range(12)]:
            outcome.result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "x", c.x[0]), r"sequences \[4, 8\] where three sizes"),
        (lambda c: setattr(c, "x", c.x.double()), "sequences of torch.float64"),
        (lambda c: setattr(c, "x", c.x[:, :0]), "none of them 0, are expected"),
        (lambda c: setattr(c, "x", c.x[:, :, :4]), "weights that do not fit"),
        (lambda c: setattr(c, "x", c.x[:1]), "states that do not fit"),
        (lambda c: setattr(c, "states", c.states[:1]), "states that do not fit"),
        (lambda c: c.tensors.append(c.tensors[0]), "whole layers"),
        (lambda c: setattr(c, "tensors", []), "whole layers"),
        (lambda c: c.settings.update(kind="gru"), "states that do not fit"),
        (lambda c: c.settings.update(bidirectional=True), "whole layers"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    wrong = case()
    change(wrong)
    with pytest.raises(ValueError, match=message):
        wrong.run()


@pytest.mark.parametrize("kind", list(LAYERS))
def test_weights_come_back(kind):
    gates = recurrent.KINDS[kind][1]
    for of_state, columns in ((False, 7), (True, 19)):
        weight = torch.randint(-127, 128, (gates * 19, columns), dtype=torch.int8)
        matrix = recurrent.packed(kind, weight, torch.ones(gates * 19), None, of_state)
        assert recurrent.unpacked(kind, matrix.weights, 19, columns).equal(weight)


def test_torch_knows_what_it_makes():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    for kind in ("lstm", "gru"):
        known = case(kind=kind, layers=2, bidirectional=True)
        known.states = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in known.states]
        c0 = known.states[1] if kind == "lstm" else None
        given = (known.x, known.states[0], c0, known.tensors, *known.settings.values())
        operator = torch.ops.octavo.recurrent.default
        with torch.inference_mode():
            torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


def test_it_can_be_compiled_around():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    known = case()
    given = (known.states[0], known.states[1], known.tensors, *known.settings.values())

    @torch.compile(backend="eager", fullgraph=True)
    def run(x):
        return torch.ops.octavo.recurrent(x, *given)[0] + 1

    torch.testing.assert_close(run(known.x), known.run()[0] + 1)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@examples(30)
@given(
    **STACKS,
    lengths=lengths,
    hidden=st.integers(1, 50),
    how=st.sampled_from([How.INTEGERS, How.ROW_RANGE, How.FLOATS]),
)
def test_packed_sequences_are_what_each_is_alone(instruction_set, lengths, hidden, **how):
    """To the bit, in whatever company; and what torch makes of the same packed sequences."""
    lengths = sorted(lengths, reverse=True)
    packing = case(**how, batch_first=True, sizes=(lengths[0], len(lengths), 7, hidden))
    packed = pack_padded_sequence(packing.x, lengths, batch_first=True)
    data, *ends = packing.run(packed.data, batch_sizes=packed.batch_sizes)
    out, _ = pad_packed_sequence(packed._replace(data=data), batch_first=True)
    for row, length in enumerate(lengths):
        states = [state[:, row : row + 1] for state in packing.states]
        alone, *last = packing.run(packing.x[row : row + 1, :length], states)
        assert torch.equal(out[row, :length], alone[0])
        assert all(torch.equal(a[:, row], b[:, 0]) for a, b in zip(ends, last, strict=True))
    read = pack_padded_sequence(packing.read, lengths, batch_first=True)
    exact, *states = packing.exact(PackedSequence(*read))
    is_rounded = how["how"] is not How.FLOATS
    for have, want in zip((data, *ends), (exact.data, *states), strict=True):
        off, size = (have.double() - want).abs().max(), max(1, want.abs().max().item())
        assert off <= (0.1 if is_rounded else 5e-4) * size


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 2, 2, 1], "not those of 8 packed values"),
        ([2, 3, 3], "not those of 8 packed values"),
        ([5, 3, 0], "not those of 8 packed values"),
        ([], "int64 sizes"),
        ([4.0, 4.0], "int64 sizes"),
        ([4, 4], "states that do not fit"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(sizes, message):
    wrong = case()
    sizes = torch.tensor(sizes) if sizes else torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        wrong.run(wrong.x.reshape(8, 8), batch_sizes=sizes)
