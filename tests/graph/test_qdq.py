"""The vocabulary of QDQ graphs is that of the operators, and there is one of it."""

from __future__ import annotations

from octavo.graph import operators, qdq
from octavo.graph.graph import Node


def test_every_name_is_an_operators() -> None:
    names = {value for value in vars(qdq).values() if isinstance(value, str) and "octavo." in value}
    names |= qdq.DEQUANTIZED | qdq.WEIGHT_READERS
    operator_names = {name for name in names if name.endswith(".default")}
    assert len(operator_names) == 7
    for name in operator_names:
        assert callable(operators.resolve(name))


def test_own_operators_are_told_from_the_models() -> None:
    assert qdq.is_own(Node("x.quantized", qdq.QUANTIZE))
    assert not qdq.is_own(Node("x", "aten.relu.default"))
