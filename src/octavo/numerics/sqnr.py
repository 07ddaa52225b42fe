"""Signal over noise, in which errors are told.

Tested in tests/measuring/test_metrics.py and tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

import math


def sqnr_db(signal: float, noise: float) -> float:
    """Signal over noise in dB: infinite where nothing was lost, minus infinite where all was noise.

    Args:
        signal: the sum of the squares of the exact values.
        noise: the sum of the squares of the errors.

    Example:
        >>> sqnr_db(10.0, 0.01), sqnr_db(0.0, 1.0)
        (30.0, -inf)
    """
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or noise == math.inf:
        return -math.inf
    return 10.0 * math.log10(signal / noise)
