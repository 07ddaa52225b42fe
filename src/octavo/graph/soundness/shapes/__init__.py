"""What an operator makes of tensors that are only a shape and a dtype.

Torch can say so itself, by running on the meta device. That imports its compiler (a second, and 80
MB) for almost every operator, walks recurrent layers step by step, and makes lists as long as a
file asks for. So what real models are made of has rules here, and the rest is asked of torch.

All of it is tested in tests/graph/soundness/shapes/test_shapes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.graph.soundness.schemas import MOST_TENSORS
from octavo.graph.soundness.shapes import elementwise, layers, losses, placing, spectra
from octavo.graph.soundness.shapes.common import Rule, axis_of, made, require

# By "name.overload", or by name for all of its overloads. Ours start with "octavo.".
RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **layers.RULES,
    **losses.RULES,
    **placing.RULES,
    **spectra.RULES,
}
# The sizes of their results depend on values. The rules give the largest that can be.
OPEN = frozenset({"index", "unique_consecutive"})


def result_of(name: str, operator: Any, values: Mapping[str, Any]) -> Any:
    """Tensors on the meta device, or a number: what an operator makes of arguments by name.

    Raises:
        Exception: it does not take them. Of any type, since torch's own may be asked.

    Example:
        >>> x, relu = torch.empty(2, 3, device="meta"), torch.ops.aten.relu.default
        >>> result_of("aten.relu.default", relu, {"self": x}).shape
        torch.Size([2, 3])
    """
    rule = _rule(name)
    result = _on_meta(operator, values) if rule is None else rule(operator, values)
    return _plain(result)


def _rule(name: str) -> Rule | None:
    namespace, short, overload = name.split(".")
    if namespace != "aten":
        return RULES[f"{namespace}.{short}"]
    return RULES.get(f"{short}.{overload}", RULES.get(short))


def _on_meta(operator: Any, values: Mapping[str, Any]) -> Any:
    """Torch's own answer, where the list that it makes is not too long."""
    require(_pieces(operator, values) <= MOST_TENSORS, f"more than {MOST_TENSORS} tensors")
    devices = {a.name for a in operator._schema.arguments if "Device" in str(a.real_type)}
    return operator(**{**values, **dict.fromkeys(devices, torch.device("meta"))})


def _pieces(operator: Any, values: Mapping[str, Any]) -> int:
    """How many tensors an operator makes at most, where that is a matter of its arguments."""
    name, x = operator._schema.name, values.get("self")
    if name == "aten::unbind" or isinstance(values.get("split_size"), int):
        assert isinstance(x, Tensor)
        size = x.shape[axis_of(values["dim"], x.dim())]
        return int(-(-size // max(1, values.get("split_size", 1))))
    asked = values.get("chunks", values.get("sections"))
    return asked if isinstance(asked, int) else 1


def _plain(result: Any) -> Any:
    """Contiguous: shapes do not depend on memory formats."""
    if isinstance(result, Tensor):
        return result if result.is_contiguous() else made(result.shape, result.dtype)
    return [_plain(item) for item in result] if isinstance(result, list | tuple) else result
