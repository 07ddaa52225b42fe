"""What tuning found: its table and its JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.runtimes.tuning import Trial, Tuning, Variant

BEST = Variant("quick", in_float=frozenset({"a", "c"}), in_bfloat16=frozenset({"b"}))
FOUND = Tuning(
    "some CPU, 4 cores",
    BEST,
    Variant("slow"),
    (
        Trial("runtime and sizes", "quick", "k1", 1.5, 0.01, kept=True),
        Trial("linear layers (a)", "float", "k2", 1.25, 0.02, kept=True, layers=("a",)),
        Trial("tables (b)", "bfloat16", "k3", 1.1, 0.0, kept=True, layers=("b",)),
        Trial("embedding 9x9 (b)", "int8", "k4", 0.8, 0.0, why="slower", layers=("b",)),
        Trial("runtime and sizes", "absent", "k5", why="it is not installed"),
    ),
    over_untuned=2.0625,
    over_float=3.0,
    seconds=12.0,
    finished=True,
)


def test_it_is_its_json() -> None:
    assert Tuning.from_dict(json.loads(FOUND.to_json())) == FOUND


def test_it_shows_what_each_choice_brought() -> None:
    assert str(FOUND) == (
        "tuned for this kind of CPU: quick, 2 layers in float, 1 layer in bfloat16; 2.06x as fast "
        "as untuned; 3.00x as fast as in float\n"
        "some CPU, 4 cores, 12 s\n"
        "choice             tried     speed  noise  outcome\n"
        "runtime and sizes  quick     1.50x  0.01   kept\n"
        "linear layers (a)  float     1.25x  0.02   kept\n"
        "tables (b)         bfloat16  1.10x  0.00   kept\n"
        "embedding 9x9 (b)  int8      0.80x  0.00   slower\n"
        "runtime and sizes  absent    -      -      it is not installed\n"
        "speed is that of a variant over the fastest of before it; untuned is slow"
    )


def test_it_says_why_layers_are_not_in_int8() -> None:
    assert FOUND.slowed == {
        "a": "float is faster: with linear layers (a) in int8 the model takes 1.25x as long",
        "b": "bfloat16 is faster: with embedding 9x9 (b) in int8 the model takes 1.25x as long",
        "c": "float is faster: measured on this CPU",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 3},
        {"finished": 1},
        {"seconds": "long"},
        {"over_float": True},
        {"best": {}},
        {"trials": [{}]},
        {"trials": [{**FOUND.to_dict()["trials"][0], "layers": [3]}]},
        {"trials": [{**FOUND.to_dict()["trials"][0], "why": None}]},
    ],
)
def test_what_is_none(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        Tuning.from_dict({**json.loads(FOUND.to_json()), **change})
