"""`round_long_inputs`: prompts whose layers read eight bits of each token.

A weight-only layer keeps 16 bits of what it reads. For the few rows of a step that costs nothing,
since it waits for its weights; a long prompt waits for arithmetic, of which eight bits take half,
and weights of four bits in groups a quarter.

Tested in tests/model/language/test_long_inputs.py.
"""

from __future__ import annotations

from torch import nn

from octavo.errors import InputError
from octavo.model.nn import Linear, QuantizedModule


def round_long_inputs(model: nn.Module, rows: int = 32) -> int:
    """Let weight-only linear layers round inputs of many rows to eight bits, each row by its range.

    Weights of four bits in groups are read as int8 by one scale for each output channel in such
    calls. Calls of fewer rows, as steps of a text are, stay as they were, and so do compiled ones.
    It is a setting of the model in memory, and not saved with it.

    Args:
        model: quantized by ``mode="weight_only"``; changed in place.
        rows: of an input that is rounded, at least: tokens, in all texts of a batch together; 1
            rounds the steps of a text, too.

    Returns:
        How many layers have such a kernel.

    Raises:
        InputError: the model has none, or ``rows`` is below 1.

    Example:
        >>> import octavo
        >>> layer = Linear.from_float(nn.Linear(64, 16), octavo.weight_only_qconfig())
        >>> round_long_inputs(nn.Sequential(layer))
        1
    """
    if rows < 1:
        raise InputError(f"rows is {rows}: give the least number of rows that are rounded, from 1")
    found = [m for m in model.modules() if isinstance(m, Linear) and m.activation is None]
    layers = [layer for layer in found if layer.product() is not None]
    if not layers:
        raise InputError(
            "no layer of the model has a kernel for rounded rows: quantize it by "
            'mode="weight_only" with scope="modules", on a CPU with AVX2 or AVX512'
        )
    for layer in layers:
        layer.rounds_from = rows
    QuantizedModule.changes += 1  # whoever has called its layers' kernels asks them again
    return len(layers)
