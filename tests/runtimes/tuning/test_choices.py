"""What may be chosen, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.graph.graph import Graph
from octavo.numerics.native import library
from octavo.runtimes import RUNTIMES, Runtime
from octavo.runtimes.tuning import Variant
from octavo.runtimes.tuning.choices import (
    IN_FLOAT,
    JOINED,
    LAYOUT,
    PROGRAMS,
    RUNTIME,
    THREADS,
    Choice,
    Space,
    choices,
    variants,
)
from octavo.runtimes.tuning.layers import all_layers

SIZES = ((2, 3, 8, 8),)


@pytest.fixture
def space(graph: Graph, toys: tuple[str, ...]) -> Space:
    return Space(graph, toys, SIZES, threads=4, bfloat16=True)


def called(choice: Choice, space: Space, best: Variant) -> list[str]:
    return list(variants(choice, space, best).values())


def test_coarse_choices_come_before_fine_ones(space: Space) -> None:
    names = [choice.name for choice in choices(space)]
    assert names[:3] == ["runtime and sizes", "all layers", "kernels"]
    assert names[3:7] == [
        "convolutions (stem)",
        "depthwise convolutions (depthwise)",
        "linear layers (left and 1 more)",
        "sums and pools (add and 1 more)",
    ]
    assert names[7:10] == ["linear layers that read the same", "order of images", "threads"]
    assert [name.split(" (")[0] for name in names[10:]] == [
        *("add", "mean"),
        *("linear 4x8", "conv2d 8x1x3x3", "conv2d 8x3x3x3"),
    ]
    assert all(choice.changes and choice.keeps for choice in choices(space))


def test_each_changes_one_thing(space: Space) -> None:
    best = Variant("quick")
    assert called(RUNTIME, space, best) == ["slow", "quick, known sizes"]
    assert called(JOINED, space, best) == ["apart"]
    assert called(LAYOUT, space, best) == ["channels last"]
    assert called(PROGRAMS, space, best) == ([] if library.obstacle() else ["torch's"])
    assert called(THREADS, space, best) == ["1", "2"]
    assert called(THREADS, space, replace(best, threads=2)) == ["1", "4"]
    assert called(IN_FLOAT, space, best) == [
        *("int8 on slow", "float on slow", "bfloat16 on slow"),
        *("float on quick", "bfloat16 on quick"),
    ]


def test_what_a_runtime_does_not_have_is_not_tried(space: Space) -> None:
    best = Variant("slow")
    for choice in (JOINED, LAYOUT, PROGRAMS, THREADS):
        assert variants(choice, space, best) == {}
    asked = replace(space, fixed_threads=True, sizes=None)
    assert variants(THREADS, asked, Variant("quick")) == {}
    assert called(RUNTIME, asked, Variant("quick")) == ["slow"]


def test_a_variant_that_moves_leaves_what_the_other_runtime_lacks(space: Space) -> None:
    full = Variant("quick", SIZES, 2, frozenset(), frozenset({"stem"}), False, True, False)
    assert space.fitted(full) == full
    moved = space.fitted(replace(full, runtime="slow"))
    assert moved == Variant("slow", in_bfloat16=frozenset({"stem"}))
    no_bfloat16 = replace(space, bfloat16=False)
    assert no_bfloat16.fitted(full) == replace(
        full, in_float=frozenset({"stem"}), in_bfloat16=frozenset()
    )


def test_a_runtime_of_one_precision_has_all_layers_in_it_or_none(space: Space) -> None:
    slow = RUNTIMES["slow"]
    RUNTIMES["slow"] = Runtime(slow.lower, islands=False)
    narrow, layers = all_layers(space.graph).narrow, all_layers(space.graph).layers
    some = Variant("slow", in_bfloat16=frozenset({"stem"}), in_float=layers - {"stem"})
    assert space.fitted(some) == Variant("slow", in_float=layers)
    # Sums are float in both.
    every = Variant("slow", in_bfloat16=narrow, in_float=layers - narrow)
    assert space.fitted(every) == every
    # What stays in int8 is no float layer.
    alone = Variant("slow", in_bfloat16=frozenset({"stem"}))
    assert space.fitted(alone) == alone
