"""Numbers for JSON, which knows no infinity."""

from __future__ import annotations

import math
from typing import Any


def finite(data: Any) -> Any:
    """Dicts, lists and tuples with ``None`` for each number that is infinite or NaN.

    Example:
        >>> finite({"sqnr_db": [float("inf"), 41.0]})
        {'sqnr_db': [None, 41.0]}
    """
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
