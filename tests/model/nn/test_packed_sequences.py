"""Packed sequences through LSTM, GRU and RNN, by Octavo's own kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import octavo
from octavo.errors import InputError
from octavo.model.nn.packed_sequences import PackedSequences
from octavo.numerics.native import library

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
QCONFIGS = {
    "dynamic": octavo.dynamic_qconfig(),
    "per tensor": octavo.dynamic_qconfig(per_token=False),
    "int8": octavo.weight_only_qconfig(),
}


def quantized(layer: nn.Module, how: str = "dynamic") -> Any:
    return octavo.nn.from_float(layer, QCONFIGS[how])


def far(exact: Tensor, other: Tensor) -> float:
    return float((exact - other).norm() / exact.norm())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(list(KINDS)),
    layers=st.integers(1, 2),
    both=st.booleans(),
    batch_first=st.booleans(),
    with_states=st.booleans(),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    how=st.sampled_from(list(QCONFIGS)),
)
def test_each_sequence_is_what_it_is_alone_and_near_to_torchs(
    instruction_set: str,
    kind: str,
    layers: int,
    both: bool,
    batch_first: bool,
    with_states: bool,
    lengths: list[int],
    how: str,
) -> None:
    torch.manual_seed(1)
    layer = KINDS[kind](5, 9, layers, bidirectional=both, batch_first=batch_first)
    q, count = quantized(layer, how), layers * (1 + both)
    if instruction_set != "portable":
        assert PackedSequences.of(q, q.layer_operator) is not None
    x = torch.randn(len(lengths), max(lengths), 5)
    states: Any = tuple(torch.randn(count, len(lengths), 9) for _ in range(1 + (kind == "LSTM")))
    hx = (states if kind == "LSTM" else states[0]) if with_states else None
    turned = x if batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(turned, lengths, batch_first, enforce_sorted=False)
    result, ends = q(packed, hx)
    exact, exact_ends = q.torchs(packed, hx)
    assert far(exact.data, result.data) < 0.03
    ends, exact_ends = ((e if isinstance(e, tuple) else (e,)) for e in (ends, exact_ends))
    assert all(far(a, b) < 0.03 for a, b in zip(exact_ends, ends, strict=True))
    if how == "per tensor" or instruction_set == "portable":
        return  # a range that all share; torch's kernels, where ours are slow
    padded, sizes = pad_packed_sequence(result, batch_first=True)
    assert sizes.tolist() == lengths
    for row, length in enumerate(lengths):
        own = tuple(state[:, row : row + 1] for state in states)
        own = (own if kind == "LSTM" else own[0]) if with_states else None
        one = x[row : row + 1, :length]
        alone, last = q(one if batch_first else one.transpose(0, 1), own)
        assert torch.equal(padded[row, :length], alone.reshape(length, -1))
        last = last if isinstance(last, tuple) else (last,)
        assert all(torch.equal(a[:, row], b[:, 0]) for a, b in zip(ends, last, strict=True))


def packed() -> Any:
    return pack_padded_sequence(torch.randn(6, 3, 5), [6, 4, 1])


def test_weights_are_held_once_and_come_back() -> None:
    if library.obstacle():
        pytest.skip(library.obstacle())
    q, x = quantized(nn.LSTM(5, 9, 2)), packed()
    before = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    result = q(x)[0].data
    held = q._buffers._unpack.keys()
    assert set(held) == {name for name, t in before.items() if t.dtype == torch.int8}
    assert all(torch.equal(q.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(copy.deepcopy(q)(x)[0].data, result)
    other = quantized(nn.LSTM(5, 9, 2))
    assert not torch.equal(other(x)[0].data, result)
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x)[0].data, result)


def test_four_bits_and_bfloat16() -> None:
    per_channel = octavo.weight_only_qconfig(4, group_size=None)
    for layer, qconfig in (
        (nn.GRU(32, 16), per_channel),
        (nn.GRU(32, 16).bfloat16(), QCONFIGS["dynamic"]),
    ):
        q: Any = octavo.nn.from_float(layer, qconfig)
        dtype = next(layer.parameters()).dtype
        x = pack_padded_sequence(torch.randn(6, 3, 32).to(dtype), [6, 4, 1])
        result, state = q(x)
        assert (result.data.dtype, state.dtype) == (dtype, dtype)
        assert far(q.torchs(x, None)[0].data.float(), result.data.float()) < 0.03


def test_what_the_kernel_does_not_run_goes_through_torchs() -> None:
    projected = quantized(nn.LSTM(5, 9, proj_size=4))
    assert PackedSequences.of(projected, "lstm") is None
    x = packed()
    assert torch.equal(projected(x)[0].data, projected.torchs(x, None)[0].data)


def test_sizes_that_do_not_fit_are_told() -> None:
    q = quantized(nn.GRU(5, 9))
    with pytest.raises(InputError, match=r"takes states \[\(1, 3, 9\)\]"):
        q(packed(), torch.zeros(1, 2, 9))
    with pytest.raises(InputError, match="of 5 inputs takes"):
        q(pack_padded_sequence(torch.randn(6, 3, 4), [6, 4, 1]))
