"""The result of `octavo.compare`: a row for each contender; a table, a dict, JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.arguments import of
from octavo.display import Result, Table, finite, percent, plain
from octavo.measuring.significance import LEVEL

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as Grid

MEGABYTE = 1_000_000
BASELINES = ("fp32", "bf16")  # names of the rows that all others are judged by
COLUMNS = 6  # contenders in a table; more are continued in another


@dataclass(frozen=True)
class Row:
    """What one contender costs and gives.

    Attributes:
        name: ``"fp32"``, ``"bf16"``, ``"int8"`` or another name that was given;
            ``"<name> <runtime>"`` where there are several runtimes.
        runtime: what ran it: ``"eager"`` for the model itself, else a runtime of Octavo.
        size_bytes: bytes on disk (weights as safetensors; the whole artifact for int8).
        size_ratio: those bytes over fp32's.
        metric: the task metric (top-1 in percent); ``None`` without labels.
        loss: beside a perplexity, the mean cross-entropy of a token, in nats.
        agreement: percent of class decisions that equal fp32's; ``None`` for fp32 itself.
        sqnr_db: SQNR of the outputs against fp32's in dB; infinite where they are equal.
        latency_ms, p95_ms: median and 95th percentile of one call.
        throughput: samples per second at the median.
        speedup: how many times faster than fp32, the median of the ratios round by round.
        error: why the contender could not run; all that was not measured is ``None``.
        interval: in which a counted metric lies at 95 %, in percent (Wilson's score interval).
        lost, won: samples that only fp32, and only this contender, answers rightly.
        p_value: how often chance alone would divide these as unevenly (McNemar's exact test).
        load_s: seconds from the file to the first result, in a new process.
        memory_mb: the most megabytes that this took, beyond the packages themselves.
        divergence: of a causal language model: the mean divergence (Kullback-Leibler, in nats) of
            its distributions of the next token from fp32's.
        integers: percent of its multiply-adds that read integers; ``None`` for float models.

    ``interval`` to ``p_value`` need one label for each sample.
    """

    name: str
    runtime: str
    size_bytes: int | None = None
    size_ratio: float | None = None
    metric: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    p95_ms: float | None = None
    throughput: float | None = None
    speedup: float | None = None
    error: str | None = None
    interval: tuple[float, float] | None = None
    lost: int | None = None
    won: int | None = None
    p_value: float | None = None
    load_s: float | None = None
    memory_mb: float | None = None
    integers: float | None = None
    loss: float | None = None
    divergence: float | None = None

    def to_dict(self, metric_name: str) -> dict[str, Any]:
        """JSON-able; an infinite SQNR (equal outputs) is ``None``, as JSON has no infinity."""
        values = finite(asdict(self))
        del values["name"]
        size_mb = None if self.size_bytes is None else self.size_bytes / MEGABYTE
        return {"size_mb": size_mb, metric_name: values.pop("metric"), **values}


@dataclass(frozen=True)
class Comparison(Result):
    """Size, accuracy and speed, side by side; the first row is fp32.

    Attributes:
        rows: the contenders.
        metric: name of the task metric, ``"top1"`` unless another was chosen.
        samples: how many samples the quality was measured on.
        batch_size, threads, rounds: how latency was measured.
        environment: CPU, instruction set and torch's version.
        notes: what the reader has to know, for example why a column is empty.

    Example:
        >>> result = Comparison((Row("fp32", "eager", latency_ms=2.0),), "top1", 10, 1, 2, 5)
        >>> result["fp32"].latency_ms
        2.0
    """

    rows: tuple[Row, ...]
    metric: str
    samples: int
    batch_size: int
    threads: int
    rounds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} is not among {[row.name for row in self.rows]}")

    def to_dict(self) -> dict[str, Any]:
        """``{"fp32": {...}, "bf16": {...}, "int8": {...}, "settings": {...}}``, JSON-able."""
        settings = {
            "metric": self.metric,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "rounds": self.rounds,
            "speedup": "median of the ratios fp32 / contender, round by round",
            "interval": "Wilson's, 95 %",
            "p_value": "McNemar's exact test against fp32, two-sided",
            **self.environment,
            "notes": list(self.notes),
        }
        return {row.name: row.to_dict(self.metric) for row in self.rows} | {"settings": settings}

    def table(self) -> Table:
        """A row for each contender, with how it was measured below."""
        measures = self._measures()
        rows = ((row.name, *(measure.cell(row) for measure in measures)) for row in self.rows)
        columns = ("contender", *(measure.title for measure in measures))
        failures = (f"{row.name} could not run: {row.error}" for row in self.rows if row.error)
        return Table(columns, tuple(rows), notes=(self.caption(), *failures, *self.notes))

    def verdict(self) -> str:
        """A line for each row beside fp32 and bf16: is it worth it here?"""
        fp32 = self.rows[0]
        baselines = [row for row in self.rows if row.name in BASELINES]
        parts = []
        for row in (row for row in self.rows if row.name not in BASELINES):
            claims = []
            if row.size_ratio:
                ratio = max(row.size_ratio, 1 / row.size_ratio)
                claims.append(
                    f"{ratio:.2f}x {'smaller' if row.size_ratio <= 1 else 'LARGER'} than fp32"
                )
            claims += [_pace(row, other) for other in baselines]
            if row.metric is not None and fp32.metric is not None:
                title, unit = _metric_title(self.metric), _metric_unit(self.metric)
                claims.append(f"{title} {row.metric - fp32.metric:+.2f}{unit}{_weight(row)}")
            elif row.agreement is not None:
                claims.append(f"{row.agreement:.2f} % of the decisions are fp32's")
            parts.append(f"{row.name}: " + ", ".join(filter(None, claims)))
        return plain("\n".join(parts), "\n")

    def caption(self) -> str:
        """How it was measured, and on what, in a sentence."""
        machine = ", ".join(self.environment.get(k, "") for k in ("cpu", "isa", "torch"))
        tested = any(row.p_value is not None for row in self.rows)
        test = "; p: McNemar's exact test against fp32" if tested else ""
        return (
            f"{self.samples} samples{test}; latency of one batch of {self.batch_size}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}, {self.rounds} interleaved rounds; "
            f"speed: fp32 = 1, median of the ratios round by round. {machine}".rstrip(" ,")
        )

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=80, color_system=None).print(self)
        return buffer.getvalue().rstrip("\n")

    def __rich__(self) -> Group:
        """Contenders side by side, a line for each measure: that fits a terminal of 80 columns."""
        from rich.console import Group
        from rich.text import Text

        starts = range(0, len(self.rows), COLUMNS)
        grids = (self._side_by_side(self.rows[start : start + COLUMNS]) for start in starts)
        notes = plain("\n".join(self.table().notes), "\n")
        return Group(*grids, Text(notes, style="dim"))

    def _side_by_side(self, rows: Sequence[Row]) -> Grid:
        from rich import box
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
        grid.add_column("")
        for row in rows:
            style = "red" if row.error else "" if row.name in BASELINES else "green"
            name = plain(row.name)
            width = max(8, *map(len, name.split()))  # a runtime's name is not cut
            grid.add_column(Text(name), justify="right", style=style, min_width=width)
        for measure in self._measures():
            grid.add_row(Text(plain(measure.title)), *(measure.cell(row) for row in rows))
        return grid

    def _measures(self) -> list[_Measure]:
        """Measures that no row has a value for (no labels, no classes) are left out."""
        title = _metric_title(self.metric) + " %" * bool(_metric_unit(self.metric))
        known = [
            _Measure("size MB", lambda row: row.size_bytes and row.size_bytes / MEGABYTE, "{:.2f}"),
            _Measure("of fp32", lambda row: row.size_ratio, "{:.3f}"),
            _Measure(title, lambda row: row.metric, "{:.2f}"),
            _Measure("loss", lambda row: row.loss, "{:.4f}"),
            _Measure(
                "95 % range",
                lambda row: row.interval and "{:.1f}-{:.1f}".format(*row.interval),
                "{}",
            ),
            _Measure("p", lambda row: row.p_value, "{:.2g}"),
            _Measure("agreement %", lambda row: row.agreement, "{:.2f}"),
            _Measure("divergence", lambda row: row.divergence, "{:.4f}"),
            _Measure("SQNR dB", lambda row: row.sqnr_db, "{:.1f}"),
            _Measure("median ms", lambda row: row.latency_ms, "{:.2f}"),
            _Measure("p95 ms", lambda row: row.p95_ms, "{:.2f}"),
            _Measure("samples / s", lambda row: row.throughput, "{:,.0f}"),
            _Measure("speed", lambda row: row.speedup, "{:.2f}x"),
            _Measure("load s", lambda row: row.load_s, "{:.2f}"),
            _Measure("memory MB", lambda row: row.memory_mb, "{:.0f}"),
            _Measure(
                "on integers",
                lambda row: None if row.integers is None else percent(row.integers / 100),
                "{}",
            ),
        ]
        return [m for m in known if any(m.value(row) is not None for row in self.rows)]


COMPARISON = of(Comparison, way_out="octavo.compare returns one")


@dataclass(frozen=True)
class _Measure:
    title: str
    value: Callable[[Row], float | str | None]
    form: str

    def cell(self, row: Row) -> str:
        value = self.value(row)
        if value is None:
            return "-"
        return "equal" if value == math.inf else self.form.format(value)


def _metric_title(name: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}.get(name, name)


def _metric_unit(name: str) -> str:
    """Metrics of our own are in percent, those of the user in what they are in."""
    return " points" if name in ("top1", "top5") else ""


def _weight(row: Row) -> str:
    """Whether a difference to fp32 means anything."""
    if row.p_value is None or row.lost is None or row.won is None:
        return ""
    if row.p_value >= LEVEL:
        return f" (within chance, p = {row.p_value:.2g})"
    return f" (a real {'loss' if row.lost > row.won else 'gain'}, p = {row.p_value:.2g})"


def _pace(row: Row, other: Row) -> str:
    if not row.latency_ms or not other.latency_ms or not row.speedup or not other.speedup:
        return ""
    ratio = row.speedup / other.speedup
    if 0.98 <= ratio <= 1.02:
        return f"as fast as {other.name}"
    return f"{max(ratio, 1 / ratio):.2f}x {'faster' if ratio > 1 else 'SLOWER'} than {other.name}"
