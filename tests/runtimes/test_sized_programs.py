"""A program for each size: made once, the last ones kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from octavo.runtimes.sized_programs import SizedPrograms


def test_each_is_made_once_and_the_last_ones_are_kept():
    made = []
    programs = SizedPrograms(lambda size: made.append(size) or [size], most=2)
    assert programs.of(1) is programs.of(1)
    assert programs.of(2) == [2]
    programs.of(1)  # met last now
    programs.of(3)
    programs.of(1)
    assert made == [1, 2, 3]
    programs.of(2)
    assert made == [1, 2, 3, 2]


def test_calls_that_overlap_share_one():
    made, started = [], threading.Barrier(4)

    def call(_):
        started.wait()
        return programs.of(7)

    programs = SizedPrograms(lambda size: made.append(size) or object(), most=2)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(call, range(4)))) == 1
    assert made == [7]


def test_one_that_cannot_be_made_is_tried_again():
    def make(size):
        raise ValueError("no such size")

    programs = SizedPrograms(make, most=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such size"):
            programs.of(1)
