from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.native.attention import MOST_SOURCES, attention_of_integers

SCALES, ZERO_POINTS = [0.02, 0.03, 0.01], [127, 140, 97]
OUT = [0.0117, 101, 0, 255]
MASKS = st.sampled_from(["none", "seen", "added", "row of all", "column", "of the heads"])


def random_bytes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def mask_of(kind, batch, heads, targets, sources):
    """One of each kind, which hides all sources of some targets."""
    added = torch.randn(batch, 1, targets, sources).masked_fill(
        torch.rand(batch, 1, targets, sources) < 0.3, float("-inf")
    )
    added[:, :, 0] = float("-inf")
    masks = {
        "none": None,
        "seen": added > -0.5,
        "added": added,
        "row of all": added[:1, 0, -1:, :],
        "column": torch.randn(targets, 1),
        "of the heads": torch.rand(batch, heads, targets, sources) < 0.7,
    }
    return masks[kind]


class Case:
    """Queries, keys and values in the order in which projections leave them."""

    def __init__(
        self, batch=2, heads=4, shared=4, targets=7, sources=9, channels=32, value_channels=32
    ):
        sizes = ((targets, heads, channels), (sources, shared, channels))
        shapes = [*sizes, (sources, shared, value_channels)]
        self.tensors = [random_bytes(batch, *shape).transpose(1, 2) for shape in shapes]
        self.gqa = heads != shared

    def both(self, mask=None, causal=False, scale=None, out=(), levels=255, tensors=None):
        """What the oracle and the kernel make of it, in steps of what is exact."""
        tensors = self.tensors if tensors is None else tensors
        given = (mask, causal, scale, self.gqa, levels)
        floats = (
            octavo_operators.dequantize(*parts)
            for parts in zip(tensors, SCALES, ZERO_POINTS, strict=True)
        )
        want = octavo_operators.attention(*floats, *given)
        have = attention_of_integers(*tensors, *given, SCALES, ZERO_POINTS, list(out))
        if out:
            want = octavo_operators.quantize(want, *out, torch.uint8)
            assert have.dtype == torch.uint8
        assert have.shape == want.shape
        return want, have

    def agrees(self, **given):
        """A probability that is a step off moves the mean by some hundredths of the values."""
        want, have = self.both(**given)
        error = (want.double() - have.double()).abs()
        assert want.isnan().equal(have.isnan())
        step = 1.0 if given.get("out") else SCALES[2] * 1.1
        assert float(error.nan_to_num().max()) <= step
        if error.shape[:-1].numel() > 200:
            assert float((error > 0.01 * step).double().mean()) < 0.02


@examples(60)
@given(
    targets=st.integers(1, 60),
    sources=st.integers(1, 90),
    channels=st.integers(1, 130),
    value_channels=st.integers(1, 130),
    groups=st.sampled_from([1, 2, 4]),
    mask=MASKS,
    causal=st.booleans(),
    rounded=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 99),
)
def test_results_are_the_oracles_within_a_step(
    instruction_set, groups, mask, causal, rounded, scale, seed, **sizes
):
    torch.manual_seed(seed)
    case = Case(shared=4 // groups, **sizes)
    given = mask_of(mask, 2, 4, sizes["targets"], sizes["sources"])
    case.agrees(mask=given, causal=causal, scale=scale, out=OUT if rounded else ())


@pytest.mark.parametrize("mask", ["none", "seen", "added"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes", [(7, 9, 5, 3), (50, 197, 64, 64), (33, 64, 32, 128), (17, 300, 96, 80)]
)
def test_tiles_make_what_vectors_make(by_vnni_and_amx, sizes, causal, mask):
    targets, sources, channels, value_channels = sizes
    case = Case(2, 4, 2, targets, sources, channels, value_channels)
    seen = mask_of(mask, 2, 4, targets, sources)
    for out in ([], OUT):
        given = (seen, causal, None, True, 255, SCALES, ZERO_POINTS, out)
        call = partial(attention_of_integers, *case.tensors, *given)
        vnni, amx = by_vnni_and_amx(call)
        assert torch.equal(vnni, amx)


def test_one_head_is_what_a_loop_makes_of_it(instruction_set):
    """Golden values: queries that see one key each, at a score far above the other."""
    q = torch.tensor([[[[255, 0], [0, 255]]]], dtype=torch.uint8)
    v = torch.tensor([[[[10, 20, 30], [40, 50, 60]]]], dtype=torch.uint8)
    given = (None, False, 1.0, False, 255, [1.0, 1.0, 0.5], [127, 127, 20], [])
    have = attention_of_integers(q, q, v, *given)
    expected = torch.tensor([[-5.0, 0.0, 5.0], [10.0, 15.0, 20.0]])
    assert torch.allclose(have[0, 0], expected, rtol=1e-6, atol=0.0)


def test_targets_that_see_nothing_are_zero(instruction_set):
    case = Case()
    hidden = torch.full((7, 9), float("-inf"))
    assert not case.both(mask=hidden)[1].any()
    assert case.both(mask=hidden, out=OUT)[1].unique().tolist() == [OUT[1]]
    lowest = torch.full((7, 9), torch.finfo(torch.float32).min)  # as transformers hides them
    case.agrees(mask=lowest)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mask_that_is_no_number_makes_none(instruction_set, value):
    mask = torch.zeros(7, 9)
    mask[3, 5] = value
    have = Case().both(mask=mask)[1]
    assert have.isnan().all(-1).all(0).all(0).tolist() == [i == 3 for i in range(7)]


def test_the_largest_sums_do_not_overflow(instruction_set):
    case = Case(1, 1, 1, 2, MOST_SOURCES, 4, 3)
    for tensor in case.tensors:
        tensor.fill_(255)
    case.agrees(out=[0.01, 0, 0, 255])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_targets(instruction_set, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Case(1, 3, 3, 130, 250, 64, 64).agrees(causal=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "shapes",
    [
        [(7, 8), (9, 8), (9, 5)],
        [(3, 7, 8), (3, 9, 8), (3, 9, 5)],
        [(2, 1, 3, 7, 8), (2, 1, 3, 9, 8), (2, 1, 3, 9, 5)],
        [(2, 3, 7, 8), (1, 3, 9, 8), (2, 1, 9, 5)],
        [(0, 3, 7, 8), (0, 3, 9, 8), (0, 3, 9, 5)],
    ],
)
def test_other_ranks_broadcast_as_in_torch(instruction_set, shapes):
    want, have = Case().both(tensors=[random_bytes(*shape) for shape in shapes])
    assert torch.allclose(want, have, atol=0.5 * SCALES[2])


def test_heads_of_a_result_lie_side_by_side():
    if library.library() is None:
        pytest.skip("the kernels are not compiled here: make native")
    have = Case().both()[1]
    assert have.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q.float(), k, v), "attention of torch.float32"),
        (lambda q, k, v: (q[0, 0, 0], k, v), "attention of torch.uint8"),
        (lambda q, k, v: (q, k[..., :8], v), "do not fit each other"),
        (lambda q, k, v: (q, k, v[:, :, :3]), "do not fit each other"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "or the kernel"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = (None, False, None, False, 255, SCALES, ZERO_POINTS, [])
    with pytest.raises(ValueError, match=message):
        attention_of_integers(*change(*Case().tensors), *given)


@pytest.mark.parametrize(("heads", "shared"), [(6, 4), (2, 4), (4, 0)])
def test_heads_that_cannot_be_shared_are_refused(heads, shared):
    q, k = random_bytes(1, heads, 7, 8), random_bytes(1, shared, 9, 8)
    with pytest.raises(ValueError, match=f"{heads} heads of q cannot share {shared} heads"):
        attention_of_integers(q, k, k, None, False, None, True, 255, SCALES, ZERO_POINTS, [])


def test_more_levels_than_a_byte_has_are_refused():
    with pytest.raises(ValueError, match="probabilities in 256 levels"):
        Case().both(levels=256)


@pytest.mark.parametrize("out", [[], OUT])
def test_torch_knows_what_it_makes(out):
    if library.library() is None:
        pytest.skip("the kernels are not compiled here: make native")
    operator = torch.ops.octavo.attention_of_integers.default
    given = (None, False, None, False, 255, SCALES, ZERO_POINTS, out)
    with torch.inference_mode():
        torch.library.opcheck(
            operator, (*Case().tensors, *given), test_utils=("test_schema", "test_faketensor")
        )
