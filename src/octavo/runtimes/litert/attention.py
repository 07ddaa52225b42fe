"""Products of activations, attention, and norms.

Tested in tests/runtimes/litert/test_attention.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.values import FLOAT, Form, Value
from octavo.runtimes.litert.writer import Converter, Writer

_LOWEST = float(np.finfo(np.float32).min)


def _matmul(w: Writer, node: Node) -> Value:
    a, b = (w.read(ref, last=False) for ref in node.args[:2])
    shape, wide = w.shape(node), w.shape(node)
    if len(b.shape) == 1:
        b, wide = w.reshaped(b, [b.shape[0], 1]), (*wide, 1)
    if len(a.shape) == 1:
        a, wide = w.reshaped(a, [1, a.shape[0]]), (*wide[:-1], 1, *wide[-1:])
    made = product(w, a, b, wide, w.form(node))
    return w.reshaped(made, shape)


def product(
    w: Writer, a: Value, b: Value, shape: Any, form: Form, *, turned: bool = False
) -> Value:
    """A product of matrices; of the second's rows if it is ``turned``."""
    settings = {"adjX": False, "adjY": turned, "asymmetricQuantizeInputs": False}
    return w.op("BATCH_MATMUL", [a, b], shape, form, "BatchMatMulOptions", **settings)


def _scaled(w: Writer, value: Value, factor: float) -> Value:
    if factor == 1:
        return value
    return _two(w, "MUL", value, w.constant(np.float32(factor), FLOAT, "factor"), value.shape)


def _two(w: Writer, kind: str, a: Value, b: Value, shape: Any) -> Value:
    options = {"ADD": "AddOptions", "MUL": "MulOptions", "SUB": "SubOptions", "DIV": "DivOptions"}
    return w.op(kind, [a, b], shape, FLOAT, options.get(kind, "MaximumMinimumOptions"))


def _attention(w: Writer, node: Node) -> Value:
    """In float: the oracle rounds what it reads, and its probabilities, which are rounded here."""
    given = arguments(node)
    names = ("query", "key", "value") if "query" in given else ("q", "k", "v")
    q, k, v = (w.read_floats(given[name], last=False) for name in names)
    mask = given["attn_mask"] if "attn_mask" in given else given["mask"]
    causal = given["is_causal"] if "is_causal" in given else given["causal"]
    grouped = given["enable_gqa"] if "enable_gqa" in given else given["gqa"]
    if grouped:
        k, v = (_repeated(w, value, q.shape[-3]) for value in (k, v))
    shape = [*q.shape[:-1], k.shape[-2]]
    scale = given["scale"]
    q = _scaled(w, q, q.shape[-1] ** -0.5 if scale is None else float(scale))
    scores = product(w, q, k, shape, FLOAT, turned=True)
    scores = _masked(w, scores, mask, bool(causal))
    if "levels" not in given:
        shares = w.op("SOFTMAX", [scores], shape, FLOAT, "SoftmaxOptions", beta=1.0)
        return product(w, shares, v, w.shape(node), FLOAT)
    return _rounded(w, node, scores, v, int(given["levels"]))


def _rounded(w: Writer, node: Node, scores: Value, v: Value, levels: int) -> Value:
    """With probabilities of so many steps, before they are divided by their sum."""
    thin = [*scores.shape[:-1], 1]
    largest = _over_last(w, "REDUCE_MAX", scores, thin)
    shares = w.op("EXP", [_two(w, "SUB", scores, largest, scores.shape)], scores.shape, FLOAT)
    steps = w.op("ROUND", [_scaled(w, shares, float(levels))], scores.shape, FLOAT)
    one = w.constant(np.float32(1), FLOAT, "one")
    total = _two(w, "MAXIMUM", _over_last(w, "SUM", steps, thin), one, thin)
    shape = w.shape(node)
    return _two(w, "DIV", product(w, steps, v, shape, FLOAT), total, shape)


def _over_last(w: Writer, kind: str, x: Value, shape: Any) -> Value:
    inputs = [x, w.ints([len(x.shape) - 1])]
    return w.op(kind, inputs, shape, FLOAT, "ReducerOptions", keepDims=True)


def _repeated(w: Writer, value: Value, heads: int) -> Value:
    """Each head as often as the queries have heads for it."""
    *batch, own, length, size = value.shape
    times = heads // own
    if times == 1:
        return value
    flat = w.reshaped(value, [math.prod(batch) * own, 1, length, size])
    wide = [flat.shape[0], times, length, size]
    tiled = w.op("TILE", [flat, w.ints([1, times, 1, 1])], wide, FLOAT, "TileOptions")
    return w.reshaped(tiled, [*batch, heads, length, size])


def _masked(w: Writer, scores: Value, mask: Any, causal: bool) -> Value:
    if causal:
        visible = np.tril(np.ones(scores.shape[-2:]))
        hidden = w.constant(np.where(visible, 0, _LOWEST), FLOAT, "causal")
        scores = _two(w, "ADD", scores, hidden, scores.shape)
    if mask is None:
        return scores
    if w.meta(mask).dtype != "bool":
        return _two(w, "ADD", scores, w.read_floats(mask, last=False), scores.shape)
    lowest = w.constant(np.float32(_LOWEST), FLOAT, "lowest")
    inputs = [w.read_floats(mask, last=False), scores, lowest]
    return w.op("SELECT_V2", inputs, scores.shape, FLOAT, "SelectV2Options")


def _layer_norm(w: Writer, node: Node) -> Value:
    given = arguments(node)
    x, axes, thin = _normed_axes(w, node)
    mean = w.op("MEAN", [x, axes], thin, FLOAT, "ReducerOptions", keepDims=True)
    centred = _two(w, "SUB", x, mean, x.shape)
    normed = _by_deviation(w, centred, axes, thin, float(given["eps"]))
    return _weighted(w, node, normed)


def _rms_norm(w: Writer, node: Node) -> Value:
    eps = arguments(node)["eps"]
    x, axes, thin = _normed_axes(w, node)
    small = float(np.finfo(np.float32).eps) if eps is None else float(eps)
    return _weighted(w, node, _by_deviation(w, x, axes, thin, small))


def _group_norm(w: Writer, node: Node) -> Value:
    return _normed_in_groups(w, node, int(arguments(node)["num_groups"]))


def _instance_norm(w: Writer, node: Node) -> Value:
    if not arguments(node)["use_input_stats"]:
        raise ExportError("it takes the running mean and variance of training")
    return _normed_in_groups(w, node, w.shape(node)[1])


def _normed_in_groups(w: Writer, node: Node, groups: int) -> Value:
    """Each group of channels of each sample less its mean, over its deviation."""
    given, shape = arguments(node), w.shape(node)
    flat = [shape[0], groups, math.prod(shape[1:]) // groups]
    x, axes, thin = w.read_floats(given["input"], last=False), w.ints([2]), [*flat[:2], 1]
    x = w.reshaped(x, flat)
    mean = w.op("MEAN", [x, axes], thin, FLOAT, "ReducerOptions", keepDims=True)
    centred = _two(w, "SUB", x, mean, flat)
    normed = w.reshaped(_by_deviation(w, centred, axes, thin, float(given["eps"])), shape)
    for kind, ref in (("MUL", given["weight"]), ("ADD", given["bias"])):
        if ref is not None:
            factors = w.reshaped(w.read_floats(ref), [shape[1], *[1] * (len(shape) - 2)])
            normed = _two(w, kind, normed, factors, shape)
    return normed


def _normed_axes(w: Writer, node: Node) -> tuple[Value, Value, list[int]]:
    given = arguments(node)
    x, count = w.read_floats(given["input"], last=False), len(given["normalized_shape"])
    kept = len(x.shape) - count
    axes = w.ints(list(range(kept, len(x.shape))))
    return x, axes, [*x.shape[:kept], *[1] * count]


def _by_deviation(w: Writer, x: Value, axes: Value, thin: list[int], eps: float) -> Value:
    squares = _two(w, "MUL", x, x, x.shape)
    variance = w.op("MEAN", [squares, axes], thin, FLOAT, "ReducerOptions", keepDims=True)
    raised = _two(w, "ADD", variance, w.constant(np.float32(eps), FLOAT, "eps"), thin)
    return _two(w, "MUL", x, w.op("RSQRT", [raised], thin, FLOAT), x.shape)


def _weighted(w: Writer, node: Node, value: Value) -> Value:
    given = arguments(node)
    for kind, ref in (("MUL", given["weight"]), ("ADD", given.get("bias"))):
        if ref is not None:
            value = _two(w, kind, value, w.read_floats(ref, last=False), value.shape)
    return value


CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(["matmul", "bmm", "mv", "dot"], _matmul),
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
ATTENTION = _attention
