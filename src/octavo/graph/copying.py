"""Deep copies of modules."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from octavo.errors import OctavoError, first_line

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """A deep copy; where a hook computes a weight of others (``weight_norm``, pruning), it will.

    torch itself refuses to copy such a module once it was called: the computed weight has a
    gradient's history, which the copy does without.

    Raises:
        OctavoError: something in the module cannot be copied, a lock or an open file for one.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(module, memo)
    except OctavoError:
        raise
    except Exception as error:  # whatever a part's own __deepcopy__ or __reduce__ raises
        raise OctavoError(
            f"the {type(module).__name__} cannot be copied ({first_line(error)}): take what "
            "cannot be copied out of it, or change the model itself with inplace=True where that "
            "is offered"
        ) from error
