"""Conditions on sizes: their values, how they read, and what a file may not bring."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.graph.size_guards import Guard, checked, sizes_in, written

X, Y = ("size", "x", 0), ("size", "y", 1)


@pytest.mark.parametrize(
    ("condition", "text", "holds"),
    [
        (("==", X, 4), "x.shape[0] == 4", {4}),
        (("!=", X, 3), "x.shape[0] != 3", {0, 1, 2, 4, 5}),
        (("==", ("%", X, 2), 0), "x.shape[0] % 2 == 0", {0, 2, 4}),
        ((">", X, 3), "x.shape[0] > 3", {4, 5}),
        (("and", (">=", X, 1), ("<", X, 3)), "(x.shape[0] >= 1) and (x.shape[0] < 3)", {1, 2}),
        (("or", ("<", X, 1), ("==", X, 5)), "(x.shape[0] < 1) or (x.shape[0] == 5)", {0, 5}),
        (("not", ("<=", X, 3)), "not (x.shape[0] <= 3)", {4, 5}),
        (("==", ("//", ("+", X, 1), 2), 2), "(x.shape[0] + 1) // 2 == 2", {3, 4}),
        (("==", ("*", X, Y), 6), "x.shape[0] * y.shape[1] == 6", {2}),
        (
            ("==", ("max", X, 2), ("min", Y, 7)),
            "max(x.shape[0], 2) == min(y.shape[1], 7)",
            {3},
        ),
        (("==", ("//", 6, X), 2), "6 // x.shape[0] == 2", {3}),  # and nothing divides by 0
    ],
)
def test_a_condition_is_read_and_evaluated(condition: Any, text: str, holds: set[int]) -> None:
    guard = Guard(condition, "")
    assert str(guard) == text
    assert {n for n in range(6) if guard.holds({"x": (n,), "y": (9, 3)})} == holds
    assert checked(condition, {"x": 1, "y": 2}) == condition


def test_the_inputs_of_a_condition_are_known() -> None:
    guard = Guard(("==", ("*", X, Y, X), Y), "")
    assert guard.inputs() == ["x", "y"]
    assert list(sizes_in(guard.condition)) == [("x", 0), ("y", 1), ("x", 0), ("y", 1)]


def deep(depth: int) -> Any:
    expression: Any = 1
    for _ in range(depth):
        expression = ["not", expression]
    return expression


@pytest.mark.parametrize(
    "expression",
    [
        None,
        True,
        1.5,
        "x.shape[0]",
        [],
        [[]],
        ["size", "x"],
        ["size", "x", 1],
        ["size", "x", -1],
        ["size", "x", True],
        ["size", "z", 0],
        ["size", ["x"], 0],
        ["**", 2, 3],
        ["eval", 1],
        ["==", 1],
        ["==", 1, 2, 3],
        ["not", 1, 2],
        ["+"],
        [{"a": 1}, 2],
        2**63,
        deep(90),
    ],
    ids=lambda expression: str(expression)[:30],
)
def test_what_is_no_expression_is_refused(expression: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        checked(expression, {"x": 1})


numbers = st.integers(-4, 9) | st.just(("size", "x", 0))
arithmetic = st.recursive(
    numbers,
    lambda inner: st.tuples(st.sampled_from(["+", "*", "//", "%", "max", "min"]), inner, inner),
    max_leaves=6,
)


@given(st.tuples(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), arithmetic, arithmetic))
def test_what_is_written_is_what_is_evaluated(condition: Any) -> None:
    guard = Guard(condition, "")
    for n in range(1, 4):
        text = written(condition).replace("x.shape[0]", str(n))
        try:
            expected = eval(text)  # noqa: S307  (of numbers and operators)
        except ZeroDivisionError:
            expected = False
        assert guard.holds({"x": (n,)}) is expected
