"""Sums, means, extremes and orders along axes."""

from __future__ import annotations

import math
from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.elementwise import as_result
from octavo.runtimes.onnx.sizes import axis_of, length_of, shape, size
from octavo.runtimes.onnx.writer import Converter, Writer, kept_apart

_REDUCTIONS = {
    "sum": "ReduceSum",
    "prod": "ReduceProd",
    "amax": "ReduceMax",
    "amin": "ReduceMin",
    "logsumexp": "ReduceLogSumExp",
}
_SUMS = frozenset({"ReduceSum", "ReduceMean"})
_LARGEST = frozenset({"ReduceMax", "ReduceMin"})
_NORMS = {1: "ReduceL1", 2: "ReduceL2"}
_EXTREMES = {math.inf: "ReduceMax", -math.inf: "ReduceMin"}


def _reduce(kind: str) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        keep, axes = bool(arguments(node).get("keepdim")), _axes(w, node)
        value = as_result(w, node, node.args[0])
        integers = kind in _SUMS and quantization.reads_integers(w, node.args[0])
        wider = kind == "ReduceMean" and w.rank(node.args[0]) == 3 and w.dialect.means_of_four
        if integers or wider:
            return _sum_of_integers(w, kind, value, w.rank(node.args[0]), axes, keep)
        return _reduced(w, kind, value, axes, keep, w.meta(node).dtype)

    return convert


def _sum_of_integers(
    w: Writer, kind: str, value: str, rank: int, axes: list[int], keep: bool
) -> str:
    """A sum or mean of a quantized tensor, in a form that OpenVINO's integers are right in.

    Of three axes it reads memory that nobody wrote, once the batch is larger than the channels. In
    a sum it counts the zero point once.
    """
    alone = [1] if rank == 3 else []
    if alone:
        value = w.op("Unsqueeze", value, w.ints(alone))
        axes = [axis + (axis > 0) for axis in axes]
    made = w.op("ReduceMean", value, w.ints(axes), keepdims=1)
    if kind == "ReduceSum":
        sizes = w.op("Gather", w.op("Shape", value), w.ints(axes))
        made = w.op("Mul", made, w.cast(w.op("ReduceProd", sizes, keepdims=0), "int64", "float32"))
    removed = sorted({*alone, *([] if keep else axes)})
    return w.op("Squeeze", made, w.ints(removed)) if removed else made


def _mean(w: Writer, node: Node) -> Any:
    """Over the pixels of images: average pooling, for which there are integer kernels."""
    if w.rank(node.args[0]) != 4 or sorted(_axes(w, node)) != [2, 3]:
        return _reduce("ReduceMean")(w, node)
    pooled = w.op("GlobalAveragePool", as_result(w, node, node.args[0]))
    return pooled if arguments(node).get("keepdim") else w.op("Squeeze", pooled, w.ints([2, 3]))


def _axes(w: Writer, node: Node) -> list[int]:
    """The axes that are reduced: those named, else all."""
    x, axes = node.args[0], arguments(node).get("dim")
    if isinstance(axes, int):
        axes = [axes]
    return [axis_of(w, x, axis) for axis in axes] if axes else list(range(w.rank(x)))


def _reduced(
    w: Writer, kind: str, value: str, axes: list[int], keep: bool, dtype: str = "float32"
) -> str:
    if not axes:
        return value
    reduced = w.op(kind, value, w.ints(axes), keepdims=int(keep))
    return kept_apart(w, reduced) if kind in _LARGEST and dtype == "float32" else reduced


def _variance(w: Writer, node: Node) -> tuple[str, str]:
    """Variance and mean."""
    given, axes = arguments(node), _axes(w, node)
    keep = bool(given.get("keepdim"))
    known = [w.meta(node.args[0]).shape[axis] for axis in axes]
    correction = given.get("correction", int(given.get("unbiased", True)))
    less = 1 if correction is None else correction
    x, dtype = w.read(node.args[0]), w.meta(node.args[0]).dtype
    mean = _reduced(w, "ReduceMean", x, axes, True)
    difference = w.op("Sub", x, mean)
    total = _reduced(w, "ReduceSum", w.op("Mul", difference, difference), axes, keep)
    if not keep:
        mean = w.op("Squeeze", mean, w.ints(axes))
    if None not in known:
        divisor = w.constant(math.prod(size or 0 for size in known) - less, dtype)
    else:
        chosen = w.op("Gather", shape(w, node.args[0]), w.ints(axes))
        count = w.cast(w.op("ReduceProd", chosen, keepdims=0), "int64", dtype)
        divisor = w.op("Sub", count, w.constant(less, dtype))
    return w.op("Div", total, divisor), mean


def _var(w: Writer, node: Node) -> Any:
    return _variance(w, node)[0]


def _std(w: Writer, node: Node) -> Any:
    return w.op("Sqrt", _variance(w, node)[0])


def _var_mean(w: Writer, node: Node) -> Any:
    return list(_variance(w, node))


def _std_mean(w: Writer, node: Node) -> Any:
    variance, mean = _variance(w, node)
    return [w.op("Sqrt", variance), mean]


def _norm(w: Writer, node: Node) -> Any:
    given, axes = arguments(node), _axes(w, node)
    order, keep = given.get("ord", given.get("p")), bool(given.get("keepdim"))
    order = 2 if order is None else order
    x = as_result(w, node, node.args[0])
    if order in _NORMS:
        return _reduced(w, _NORMS[order], x, axes, keep)
    if order in _EXTREMES:
        return _reduced(w, _EXTREMES[order], w.op("Abs", x), axes, keep)
    if order == 0:
        raise ExportError(f"{node.name}: {node.op} of order 0 has no ONNX form; sum x != 0")
    dtype = w.meta(node).dtype
    powers = w.op("Pow", w.op("Abs", x), w.constant(order, dtype))
    total = _reduced(w, "ReduceSum", powers, axes, keep)
    return w.op("Pow", total, w.constant(1 / order, dtype))


def _arg(kind: str) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        given, x = arguments(node), w.read(node.args[0])
        if given["dim"] is None:
            return w.op(kind, w.op("Reshape", x, w.ints([-1])), axis=0, keepdims=0)
        axis = axis_of(w, node.args[0], given["dim"])
        return w.op(kind, x, axis=axis, keepdims=int(given["keepdim"]))

    return convert


def _extreme(kind: str) -> Converter:
    """Maximum or minimum: of all, of two tensors, or with its place along an axis."""

    def of_two(w: Writer, node: Node) -> Any:
        return w.op(kind, *(as_result(w, node, arg) for arg in node.args[:2]))

    def of_all(w: Writer, node: Node) -> Any:
        x, dtype = w.read(node.args[0]), w.meta(node).dtype
        return _reduced(w, f"Reduce{kind}", x, _axes(w, node), False, dtype)

    def along(w: Writer, node: Node) -> Any:
        keep, axes = arguments(node)["keepdim"], _axes(w, node)
        x, dtype = w.read(node.args[0]), w.meta(node.args[0]).dtype
        places = w.op(f"Arg{kind}", x, axis=axes[0], keepdims=int(keep))
        return [_reduced(w, f"Reduce{kind}", x, axes, keep, dtype), places]

    overloads = {"other": of_two, "default": of_all, "dim": along}
    return lambda w, node: overloads[node.op.split(".")[2]](w, node)


def _any(kind: str) -> Converter:
    """Whether any (the largest of zeros and ones) or all values (the least) are true."""

    def convert(w: Writer, node: Node) -> Any:
        truth = w.cast(w.read_as(node.args[0], "bool"), "bool", "int32")
        keep = bool(arguments(node).get("keepdim"))
        reduced = _reduced(w, kind, truth, _axes(w, node), keep, "int32")
        return w.cast(reduced, "int32", "bool")

    return convert


def _cumsum(w: Writer, node: Node) -> Any:
    x, axis = node.args[:2]
    return w.op("CumSum", as_result(w, node, x), w.constant(axis_of(w, x, axis), "int64"))


def _topk(w: Writer, node: Node) -> Any:
    given = arguments(node)
    return _ordered(
        w, node.args[0], size(w, given["k"]), given["dim"], given["largest"], given["sorted"]
    )


def _sort(w: Writer, node: Node) -> Any:
    given, x = arguments(node), node.args[0]
    count = length_of(w, w.read(x), axis_of(w, x, given["dim"]))
    return _ordered(w, x, count, given["dim"], given["descending"])


def _argsort(w: Writer, node: Node) -> Any:
    return _sort(w, node)[1]


def _ordered(
    w: Writer, x: Ref, count: str, axis: int, largest: bool, in_order: bool = True
) -> list[str]:
    """The first values in order, and their places."""
    return w.ops(
        "TopK",
        w.read(x),
        count,
        outputs=2,
        axis=axis_of(w, x, axis),
        largest=int(largest),
        sorted=int(in_order),
    )


CONVERTERS: dict[str, Converter] = {
    **{name: _reduce(kind) for name, kind in _REDUCTIONS.items()},
    "mean": _mean,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    **dict.fromkeys(["norm", "linalg_vector_norm"], _norm),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "max": _extreme("Max"),
    "min": _extreme("Min"),
    "any": _any("ReduceMax"),
    "all": _any("ReduceMin"),
    "cumsum": _cumsum,
    "topk": _topk,
    "sort": _sort,
    "argsort": _argsort,
}
