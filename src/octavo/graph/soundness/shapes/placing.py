"""Shapes of what makes, moves and picks values, and of Octavo's own operators on integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.graph.soundness.shapes.common import Rule, axis_of, broadcast, made, on_sample, require
from octavo.numerics import octavo_operators

Values = Mapping[str, Any]
_INDICES = (torch.int32, torch.int64)
_OF_DIAGONAL = ("dim1", "dim2")
_MASKS = (torch.bool, torch.uint8)


def _filled(operator: Any, values: Values) -> Tensor:
    """zeros, ones, empty, full, and new tensors of the same dtype."""
    like = values.get("self")
    dtype = values["dtype"] or (torch.float32 if like is None else like.dtype)
    if values["dtype"] is None and operator._schema.name == "aten::full":
        dtype = torch.tensor(values["fill_value"]).dtype
    return made(values["size"], dtype)


def _arange(operator: Any, values: Values) -> Tensor:
    start, end, step = values.get("start", 0), values["end"], values.get("step", 1)
    require(all(map(math.isfinite, (start, end, step))), "an endless range")
    if values["dtype"] is torch.int64:
        start, end, step = int(start), int(end), int(step)
    whole = all(isinstance(value, int) for value in (start, end, step))
    require(step != 0, "an endless range")
    count = -((start - end) // step) if whole else math.ceil((end - start) / step)
    require(count >= 0, f"a range of {count}")
    return made([count], values["dtype"] or (torch.int64 if whole else torch.float32))


def _linspace(operator: Any, values: Values) -> Tensor:
    for end in (values["start"], values["end"]):
        require(not isinstance(end, Tensor) or (end.dim() == 0 and not end.is_complex()), "an end")
    return made([values["steps"]], values["dtype"] or torch.float32)


def _scalar(operator: Any, values: Values) -> Tensor:
    return made([], values["dtype"] or torch.float32)


def _repeat(operator: Any, values: Values) -> Tensor:
    x, repeats = values["self"], values["repeats"]
    require(len(repeats) >= x.dim() and min(repeats, default=0) >= 0, f"{repeats} repeats")
    shape = [1] * (len(repeats) - x.dim()) + list(x.shape)
    return made([size * count for size, count in zip(shape, repeats, strict=True)], x.dtype)


def _view(operator: Any, values: Values) -> Tensor:
    x, shape = values["self"], list(values["size"] if "size" in values else values["shape"])
    require(shape.count(-1) < 2, "two open sizes")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        require(known > 0 and x.numel() % known == 0, f"{x.numel()} values as {shape}")
        shape[shape.index(-1)] = x.numel() // known
    require(math.prod(shape) == x.numel(), f"{x.numel()} values as {shape}")
    return made(shape, x.dtype)


def _cat(operator: Any, values: Values) -> Tensor:
    # An empty tensor of one axis joins anything, by an old custom.
    tensors = [t for t in values["tensors"] if tuple(t.shape) != (0,)] or values["tensors"]
    first, axis = tensors[0], axis_of(values["dim"], tensors[0].dim())
    shapes = [[*tensor.shape] for tensor in tensors]
    size = sum(shape.pop(axis) for shape in shapes)
    require(all(shape == shapes[0] for shape in shapes), "what is joined does not fit")
    sample = on_sample(operator, {**values, "tensors": tensors})
    return made([*first.shape[:axis], size, *first.shape[axis + 1 :]], sample.dtype)


def _stack(operator: Any, values: Values) -> Tensor:
    tensors = values["tensors"]
    require(len({tensor.shape for tensor in tensors}) == 1, "what is stacked does not fit")
    shape = list(tensors[0].shape)
    axis = axis_of(values["dim"], len(shape) + 1)
    return made([*shape[:axis], len(tensors), *shape[axis:]], on_sample(operator, values).dtype)


def _pad(operator: Any, values: Values) -> Tensor:
    x, pad = values["self"], values["pad"] if "pad" in values else values["padding"]
    require(len(pad) % 2 == 0 and len(pad) <= 2 * x.dim(), f"padding {pad}")
    shape = list(x.shape)
    for index in range(len(pad) // 2):
        shape[-1 - index] += pad[2 * index] + pad[2 * index + 1]
    return made(shape, x.dtype)


def _embedding(operator: Any, values: Values) -> Tensor:
    weight, indices = values["weight"], values["indices"]
    require(weight.dim() == 2 and indices.dtype in _INDICES, "a table or indices of another kind")
    return made([*indices.shape, weight.shape[1]], weight.dtype)


def _gather(operator: Any, values: Values) -> Tensor:
    x, index = values["self"], values["index"]
    axis = axis_of(values["dim"], x.dim())
    require(index.dtype in _INDICES and index.dim() == x.dim(), "indices of another kind")
    sizes = zip(index.shape, x.shape, strict=True)
    require(all(i <= s for place, (i, s) in enumerate(sizes) if place != axis), "too many indices")
    return made(index.shape, x.dtype)


def _index_select(operator: Any, values: Values) -> Tensor:
    x, index = values["self"], values["index"]
    require(index.dtype in _INDICES and index.dim() < 2 and x.dim() > 0, "indices of another kind")
    shape = list(x.shape)
    shape[axis_of(values["dim"], x.dim())] = index.numel()
    return made(shape, x.dtype)


def _index(operator: Any, values: Values) -> Tensor:
    """Where a mask picks, as many values as it could pick: all of them."""
    x, places, axes = values["self"], [], 0
    for index in values["indices"]:
        if index is not None and index.dtype in _MASKS:
            require(index.shape == x.shape[axes : axes + index.dim()], "a mask of another shape")
            places += [(axes + axis, (index.numel(),)) for axis in range(index.dim())]
        elif index is not None:
            require(index.dtype in _INDICES, f"indices of {index.dtype}")
            places.append((axes, tuple(index.shape)))
        axes += 1 if index is None or index.dtype not in _MASKS else index.dim()
    require(axes <= x.dim() and bool(places), f"{axes} indices for {x.dim()} axes")
    picked = broadcast(*(shape for _, shape in places))
    indexed = [axis for axis, _ in places]
    together = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    rest = [size for axis, size in enumerate(x.shape) if axis not in indexed]
    front = indexed[0] if together else 0
    return made([*rest[:front], *picked, *rest[front:]], x.dtype)


def _unique(operator: Any, values: Values) -> tuple[Tensor, ...]:
    """As many values as there could be: all of them."""
    x, dim = values["self"], values["dim"]
    count = x.numel() if dim is None else x.shape[axis_of(dim, x.dim())] if x.dim() else 1
    places = made(x.shape if dim is None else [count], torch.int64)
    nothing = made([0], torch.int64)
    return (
        made([count] if dim is None else x.shape, x.dtype),
        places if values["return_inverse"] else nothing,
        made([count], torch.int64) if values["return_counts"] else nothing,
    )


def _diag_embed(operator: Any, values: Values) -> Tensor:
    x, axes = values["self"], [axis_of(values[d], values["self"].dim() + 1) for d in _OF_DIAGONAL]
    require(x.dim() > 0 and axes[0] != axes[1], f"a diagonal of the axes {axes}")
    shape = list(x.shape[:-1])
    for axis in sorted(axes):
        shape.insert(axis, x.shape[-1] + abs(values["offset"]))
    return made(shape, x.dtype)


def _broadcast_tensors(operator: Any, values: Values) -> list[Tensor]:
    shape = broadcast(*(tensor.shape for tensor in values["tensors"]))
    return [made(shape, tensor.dtype) for tensor in values["tensors"]]


def _placed(operator: Any, values: Values) -> Tensor:
    """What is written into a copy of ``self``."""
    return made(values["self"].shape, values["self"].dtype)


def _masked_scatter(operator: Any, values: Values) -> Tensor:
    x, mask = values["self"], values["mask"]
    require(mask.dtype == torch.bool, f"a mask of {mask.dtype}")
    return made(broadcast(x.shape, mask.shape), x.dtype)


def _shuffled(operator: Any, values: Values) -> Any:
    """Torch's own answer; nothing is moved where there is nothing, and then it is wrong."""
    require(values["self"].numel() > 0, "no values")
    return operator(**values)


def _topk(operator: Any, values: Values) -> tuple[Tensor, Tensor]:
    shape = list(values["self"].shape)
    axis = axis_of(values["dim"], len(shape))
    require(0 <= values["k"] <= (shape[axis] if shape else 1), f"{values['k']} of {shape}")
    if shape:
        shape[axis] = values["k"]
    return made(shape, values["self"].dtype), made(shape, torch.int64)


def _one_hot(operator: Any, values: Values) -> Tensor:
    require(values["num_classes"] > 0, "the number of classes is not given")
    return made([*values["self"].shape, values["num_classes"]], torch.int64)


def _quantized(operator: Any, values: Values) -> Tensor:
    """Octavo's own operators, one value for one value."""
    x, dtype = next(iter(values.values())), values.get("dtype", torch.float32)
    if isinstance(values["scale"], Tensor):
        octavo_operators.check_scales(values["scale"], values["zero_point"], x)
    if "qmin" in values:
        _check_range(values, torch.iinfo(dtype))
    return made(x.shape, dtype)


def _fake_quantized(operator: Any, values: Values) -> Tensor:
    _check_range(values, torch.iinfo(torch.int32))
    # A symmetric range is divided into steps on both sides of zero.
    require(not values["symmetric"] or values["qmin"] < 0 < values["qmax"], "no range about zero")
    return made(values["x"].shape, torch.float32)


def _check_range(values: Values, held: torch.iinfo) -> None:
    low, high = values["qmin"], values["qmax"]
    require(held.min <= low < high <= held.max, f"no {held.dtype} range goes from {low} to {high}")


def _packed(operator: Any, values: Values) -> Tensor:
    return made([(values["q"].numel() + 1) // 2], torch.uint8)


def _unpacked(operator: Any, values: Values) -> Tensor:
    packed, shape = values["packed"], values["shape"]
    held = ((math.prod(shape) + 1) // 2,)
    require(packed.dtype == torch.uint8 and tuple(packed.shape) == held, "not integers of 4 bits")
    require(min(shape, default=1) > 0, f"integers of shape {shape}")
    return made(shape, torch.int8 if values["signed"] else torch.uint8)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("zeros", "ones", "empty", "full"), _filled),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), _filled),
    "arange": _arange,
    "linspace": _linspace,
    "scalar_tensor": _scalar,
    "repeat": _repeat,
    **dict.fromkeys(("view.default", "_unsafe_view", "reshape"), _view),
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "embedding": _embedding,
    "gather": _gather,
    "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(
        (
            "scatter scatter_add scatter_reduce slice_scatter select_scatter diagonal_scatter "
            "index_put index_copy index_fill index_add"
        ).split(),
        _placed,
    ),
    "unique_consecutive": _unique,
    "masked_scatter": _masked_scatter,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _shuffled),
    "topk": _topk,
    "one_hot": _one_hot,
    "diag_embed": _diag_embed,
    "broadcast_tensors": _broadcast_tensors,
    **dict.fromkeys(("octavo.quantize", "octavo.dequantize"), _quantized),
    "octavo.fake_quantize_dynamic": _fake_quantized,
    "octavo.pack_int4": _packed,
    "octavo.unpack_int4": _unpacked,
}
