"""Attention as products, softmax and what stands between them."""

from __future__ import annotations

import math
from typing import Any

import torch

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.onnx.sizes import joined, shape
from octavo.runtimes.onnx.writer import Writer


def _scores(w: Writer, q: Any, k: Any, scale: float | None, gqa: bool) -> str:
    """``q k^T`` times the scale."""
    keys = _repeated(w, q, k, gqa)
    order = list(range(w.rank(k)))
    order[-2:] = order[:-3:-1]
    product = w.op("MatMul", w.read(q), w.op("Transpose", keys, perm=order))
    return w.op("Mul", product, _factor(w, q, scale))


def _factor(w: Writer, q: Any, scale: float | None) -> str:
    width, dtype = w.meta(q).shape[-1], w.meta(q).dtype
    if scale is None and width is None:
        last = w.cast(w.op("Reshape", shape(w, q, w.rank(q) - 1), w.ints([])), "int64", dtype)
        return w.op("Pow", last, w.constant(-0.5, dtype))
    factor = float(scale) if scale is not None else (width or 1) ** -0.5
    return w.constant(factor, dtype)


def _repeated(w: Writer, q: Any, k: Any, gqa: bool) -> str:
    """Keys or values with a head for each head of the queries."""
    heads, groups = w.meta(q).shape[-3], w.meta(k).shape[-3]
    value, rank = w.read(k), w.rank(k)
    if not gqa or (heads is not None and heads == groups):
        return value
    spread = w.op("Unsqueeze", value, w.ints([rank - 2]))
    of_queries, of_keys = (shape(w, ref, rank - 3, rank - 2) for ref in (q, k))
    each = w.op("Div", of_queries, of_keys)
    if heads is not None and groups is not None:
        of_queries, each = w.ints([heads]), w.ints([heads // groups])
    tiled = w.op("Tile", spread, joined(w, [1] * (rank - 2), each, [1, 1]))
    return w.op(
        "Reshape", tiled, joined(w, shape(w, k, 0, rank - 3), of_queries, shape(w, k, rank - 2))
    )


def _masked(w: Writer, scores: str, q: Any, k: Any, mask: Any, causal: bool) -> str:
    if causal:
        scores = w.op("Add", scores, _causal_mask(w, q, k))
    return scores if mask is None else w.op("Add", scores, _added_by(w, q, mask))


def _added_by(w: Writer, q: Any, mask: Any) -> str:
    """What a mask adds to the scores."""
    if w.meta(mask).dtype != "bool":
        return w.read(mask)
    dtype = w.meta(q).dtype
    seen, hidden = w.constant(0.0, dtype), w.constant(-math.inf, dtype)
    return w.op("Where", w.read(mask), seen, hidden)


def _added_to_what_sees(w: Writer, q: Any, k: Any, mask: Any, causal: bool) -> tuple[str, str]:
    """What is added to the scores, nothing where a target has no source; and 0.0 there, else 1.0.

    Layers with the same mask share both.
    """
    key = f"{mask.name}.added" + (f".{q.name}.{k.name}" if causal else "")
    if key not in w.values:
        added, dtype = _added_by(w, q, mask), w.meta(q).dtype
        if causal:
            added = w.op("Add", added, _causal_mask(w, q, k))
        largest = w.op("ReduceMax", added, w.ints([-1]), keepdims=1)
        sees = w.op("Greater", largest, w.constant(-math.inf, dtype))
        nothing = w.constant(0.0, dtype)
        w.values[key] = (w.op("Where", sees, added, nothing), w.cast(sees, "bool", dtype))
    pair: tuple[str, str] = w.values[key]
    return pair


def _causal_mask(w: Writer, q: Any, k: Any) -> str:
    targets, sources = w.meta(q).shape[-2], w.meta(k).shape[-2]
    if targets is not None and sources is not None:
        hidden = torch.full((targets, sources), -math.inf).triu(1)
        return w.initializer(f"causal mask of {targets} and {sources}", hidden)
    sizes = [w.op("Shape", w.read(ref), start=-2, end=w.rank(ref) - 1) for ref in (q, k)]
    ones = w.op("Expand", w.constant(-math.inf, "float32"), w.op("Concat", *sizes, axis=0))
    return w.op("Trilu", ones, w.constant(1, "int64"), upper=1)


def _sdpa(w: Writer, node: Node) -> Any:
    given = arguments(node)
    q, k, v = (given[name] for name in ("query", "key", "value"))
    gqa, mask, causal = bool(given["enable_gqa"]), given["attn_mask"], given["is_causal"]
    scores, values = _scores(w, q, k, given["scale"], gqa), _repeated(w, q, v, gqa)
    if not _may_hide_all(w, mask, causal):
        weights = w.op("Softmax", _masked(w, scores, q, k, mask, causal), axis=-1)
        return w.op("MatMul", weights, values)
    # torch gives zeros where there is nothing to see. They are multiplied in: runtimes take that
    # into their one kernel for all of attention, but no test for NaN behind it.
    added, sees = _added_to_what_sees(w, q, k, mask, causal)
    weights = w.op("Softmax", w.op("Add", scores, added), axis=-1)
    return w.op("MatMul", w.op("Mul", weights, sees), values)


def _may_hide_all(w: Writer, mask: Any, causal: bool) -> bool:
    """Whether a mask may leave a target without any source."""
    if mask is None:
        return False
    tensor = w.tensor_of(mask)
    if tensor is None or causal:
        return True
    hidden = ~tensor if tensor.dtype == torch.bool else tensor == -math.inf
    return bool(hidden.all(-1).any())


def _rounded_attention(w: Writer, node: Node) -> Any:
    """``octavo::attention``: rounded are the exponentials, before their sum divides."""
    q, k, v, mask, causal, scale, gqa, levels = node.args
    scores = _masked(w, _scores(w, q, k, scale, gqa), q, k, mask, causal)
    largest = w.op("ReduceMax", scores, w.ints([-1]), keepdims=1)
    least = w.constant(torch.finfo(torch.float32).min, "float32")
    shifted = w.op("Exp", w.op("Sub", scores, w.op("Max", largest, least)))
    step = w.constant(1 / levels, "float32")
    integers = w.op("QuantizeLinear", shifted, step, w.constant(0, "uint8"))
    rounded = w.op("DequantizeLinear", integers, step, w.constant(0, "uint8"))
    total = w.op("ReduceSum", rounded, w.ints([-1]), keepdims=1)
    total = w.op("Max", total, w.constant(1 / levels, "float32"))
    return w.op("Div", w.op("MatMul", rounded, _repeated(w, q, v, gqa)), total)


CONVERTERS = {"scaled_dot_product_attention": _sdpa, "attention": _rounded_attention}
