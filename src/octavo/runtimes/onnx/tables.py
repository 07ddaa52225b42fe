"""Tables whose rows are looked up, alone or in bags.

Tested in tests/runtimes/onnx/test_zoo.py and tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from typing import Any

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.blocks import embedding as of_blocks
from octavo.runtimes.onnx.linear import blocks_of
from octavo.runtimes.onnx.sizes import TO_THE_END, length_of
from octavo.runtimes.onnx.writer import Converter, Writer

_LOWEST = -3e38  # below every row; OpenVINO computes with infinities wrongly here
_MEAN, _MAX = 1, 2  # modes of torch's operator; 0 is the sum


def _rows(w: Writer, table: Ref, ids: Ref) -> str:
    """Rows are picked as integers and dequantized then: not the table at each call."""
    integers = quantization.integers_of(w, table)
    if integers is None or not integers.symmetric or integers.axis is None:
        blocks = blocks_of(w, table)
        if blocks is not None:
            return of_blocks(w, ids, blocks)
        return w.op("Gather", quantization.weight(w, table), w.read(ids), axis=0)
    q = w.initializer(integers.name, integers.integers)
    scale = w.initializer(integers.reader.args[1].name, integers.scale.flatten())
    rows = w.op("Cast", w.op("Gather", q, w.read(ids), axis=0), to=1)
    scales = w.op("Unsqueeze", w.op("Gather", scale, w.read(ids), axis=0), w.ints([-1]))
    return w.op("Mul", rows, scales)


def _embedding(w: Writer, node: Node) -> Any:
    return _rows(w, *node.args[:2])


def _embedding_bag(w: Writer, node: Node) -> Any:
    """ONNX has no bags: a matrix says which row is in which bag, and its product sums them."""
    given = arguments(node)
    rows, inside = _rows(w, given["weight"], given["indices"]), _is_inside(w, given)
    if given["mode"] == _MAX:
        return [_largest(w, rows, inside), "", "", ""]
    share = w.cast(inside, "bool", "float32")
    factors = given["per_sample_weights"]
    weighted = share
    if factors is not None:  # picked: a product with NaN would be NaN in all bags
        weighted = w.op("Where", inside, w.read(factors), w.constant(0, "float32"))
    bags = w.op("MatMul", weighted, rows)
    if given["mode"] == _MEAN:
        count = w.op("ReduceSum", share, w.ints([-1]))
        bags = w.op("Div", bags, w.op("Max", count, w.constant(1, "float32")))
    return [bags, "", "", ""]


def _is_inside(w: Writer, given: Any) -> str:
    """bool ``[bags, rows]``: whether a row is in a bag, and counts."""
    ids, starts = (w.read_as(given[name], "int64") for name in ("indices", "offsets"))
    length = length_of(w, ids, 0)
    one, last = w.ints([1]), w.ints([-1])
    ends = w.op("Slice", starts, one, w.ints([TO_THE_END]))
    if given["include_last_offset"]:
        starts = w.op("Slice", starts, w.ints([0]), last)
    else:
        ends = w.op("Concat", ends, length, axis=0)
    numbers = (w.constant(0, "int64"), w.op("Squeeze", length), w.constant(1, "int64"))
    place = w.op("Range", *numbers)
    after = w.op("GreaterOrEqual", place, w.op("Unsqueeze", starts, last))
    before = w.op("Less", place, w.op("Unsqueeze", ends, last))
    inside = w.op("And", after, before)
    padding = given.get("padding_idx")
    if padding is None:
        return inside
    counts = w.op("Not", w.op("Equal", ids, w.constant(padding, "int64")))
    return w.op("And", inside, counts)


def _largest(w: Writer, rows: str, inside: str) -> str:
    """The largest of each column in each bag, 0 in empty ones."""
    low, zero = w.constant(_LOWEST, "float32"), w.constant(0, "float32")
    each = w.op("Where", w.op("Unsqueeze", inside, w.ints([-1])), rows, low)
    largest = w.op("ReduceMax", each, w.ints([1]), keepdims=0)
    return w.op("Where", w.op("Greater", largest, low), largest, zero)


CONVERTERS: dict[str, Converter] = {"embedding": _embedding, "embedding_bag": _embedding_bag}
