from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.runtimes.litert.arena import Lifetime, arena_bytes


def test_values_that_are_not_needed_at_once_share_their_place():
    assert arena_bytes([Lifetime(64, 0, 1), Lifetime(32, 2, 3)]) == 64
    assert arena_bytes([Lifetime(64, 0, 2), Lifetime(32, 2, 3)]) == 96


def test_a_gap_is_filled():
    # The first is gone when the third comes, which fits into its place beside the second.
    values = [Lifetime(64, 0, 1), Lifetime(96, 0, 3), Lifetime(48, 2, 3)]
    assert arena_bytes(values) == 160


def test_nothing():
    assert arena_bytes([]) == 0


@given(
    st.lists(
        st.builds(
            lambda size, first, length: Lifetime(size, first, first + length),
            st.integers(1, 1000),
            st.integers(0, 9),
            st.integers(0, 5),
        ),
        max_size=12,
    )
)
def test_it_is_as_large_as_what_is_needed_at_once_and_no_larger_than_all(values):
    aligned = [-(-value.size // 16) * 16 for value in values]
    at_once = [
        sum(size for size, v in zip(aligned, values, strict=True) if v.first <= step <= v.last)
        for step in range(15)
    ]
    assert max(at_once) <= arena_bytes(values) <= sum(aligned)
