"""What `layer_errors` finds: a row for each tensor.

Tested in tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from octavo.display import Result, Table
from octavo.errors import optional_import
from octavo.quantization.targets import ROLES, SHARED


@dataclass(frozen=True)
class LayerError:
    """What rounding does to one tensor.

    Attributes:
        tensor: its name; an activation is named after the layer that makes it.
        kind: ``"weight"``, ``"activation"`` or ``"input"``.
        op: the operator that makes it, or that uses the weight.
        values: its integers in words, or ``"float"``.
        sqnr_db: signal over noise of the layer's own rounding: its input, its weights and its
            result, given what the float model has there. Of a weight: of its rounding.
        accumulated_sqnr_db: with the error of all layers before; ``None`` for weights.
        mse: mean squared error of the layer's own rounding.
        cosine: of the angle between exact and rounded values, own rounding.
        low, high: the exact values' range.
        clipped: share of the values beyond what the integers hold.
        unused: share of the integers beyond the values seen.
    """

    tensor: str
    kind: str
    op: str
    values: str
    sqnr_db: float
    accumulated_sqnr_db: float | None
    mse: float
    cosine: float
    low: float
    high: float
    clipped: float
    unused: float


@dataclass(frozen=True)
class LayerErrors(Result):
    """What `layer_errors` found, in the order of the graph. Prints as a table.

    Attributes:
        rows: a `octavo.measuring.layers.error_table.LayerError` for each tensor: signal over noise
            in dB, mean squared error, cosine, range.
        samples: how many were seen.

    Example:
        >>> errors = octavo.layer_errors(model, q, loader)
        >>> len(errors.worst(2)), errors.samples
        (2, 256)
    """

    rows: tuple[LayerError, ...]
    samples: int

    def worst(self, count: int = 5) -> tuple[LayerError, ...]:
        """The layers that lose most by themselves, worst first; none that only moves values.

        Args:
            count: how many, at most.
        """
        activations = [r for r in self.rows if r.kind == "activation" and ROLES.get(r.op) != SHARED]
        return tuple(sorted(activations, key=lambda row: row.sqnr_db)[:count])

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each tensor.

        Raises:
            MissingExtra: pandas is not installed.
        """
        with optional_import("pandas", "analysis", "make a DataFrame"):
            import pandas
        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("tensor")

    def table(self) -> Table:
        title = f"Rounding errors of {len(self.rows)} tensors, {self.samples} samples"
        return Table(_COLUMNS, tuple(map(_cells, self.rows)), title)


_COLUMNS = (
    "tensor",
    "op",
    "values",
    "SQNR dB",
    "accumulated",
    "cosine",
    "range",
    "clipped",
    "unused",
)


def _cells(row: LayerError) -> tuple[str, ...]:
    accumulated = row.accumulated_sqnr_db
    return (
        row.tensor,
        row.op,
        row.values,
        f"{row.sqnr_db:.1f}",
        "" if accumulated is None else f"{accumulated:.1f}",
        f"{row.cosine:.5f}",
        f"{row.low:.3g} .. {row.high:.3g}",
        f"{100 * row.clipped:.2f} %",
        f"{100 * row.unused:.0f} %",
    )
