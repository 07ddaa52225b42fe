"""May this be shipped? One sentence, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.measuring.comparison_table import BASELINES, Comparison, Row
from octavo.measuring.significance import LEVEL

Answer = Literal["yes", "perhaps", "no"]
_ORDER: tuple[Answer, ...] = ("yes", "perhaps", "no")
_FEW_SAMPLES = 200  # fewer cannot show a loss of one or two in a hundred
# From which on a quality is enough, and from which on it is worth a look: percent of equal
# decisions, dB of outputs, and how many times the float model's perplexity.
_AGREEMENT = (99.0, 95.0)
_SQNR_DB = (30.0, 20.0)
_PERPLEXITY = (1.01, 1.05)
_LOSS = 1.0  # points of top-1 that some would pay
_WORDS = {"yes": "Yes, ship it", "perhaps": "Perhaps", "no": "Not yet"}


@dataclass(frozen=True)
class Decision:
    """What a report says first.

    Attributes:
        answer: ``"yes"``, ``"perhaps"`` or ``"no"``.
        sentence: what it costs and what it brings, for somebody who reads nothing else.
    """

    answer: Answer
    sentence: str


def decide(comparison: Comparison) -> Decision:
    """Judge the first quantized model of a comparison.

    Args:
        comparison: from `octavo.compare`.

    Example:
        >>> fp32 = Row("fp32", "eager", metric=97.0, latency_ms=2.0, speedup=1.0)
        >>> fine = Row("int8", "torch", 10, 0.25, 96.9, latency_ms=1.0, speedup=2.0, p_value=1.0)
        >>> print(decide(Comparison((fp32, fine), "top1", 1000, 1, 2, 5)).sentence)
        Yes, ship it: top-1 is 96.90 %, the float model's 97.00 %, a difference within chance on \
1000 samples. It is 4.0x smaller and 2.0x faster than the float model.
    """
    fp32 = comparison.rows[0]
    rows = [row for row in comparison.rows if row.name not in BASELINES]
    row = next((row for row in rows if not row.error), None)
    if row is None:
        why = f"{rows[0].name} could not run: {rows[0].error}" if rows else "nothing was quantized"
        return Decision("no", f"{_WORDS['no']}: {why}.")
    answer, quality = _quality(row, fp32, comparison)
    brings, gain = _gain(row)
    notes = [gain]
    if not brings:
        answer = "no"
    elif row.speedup and row.speedup < 1:
        answer = _worse(answer, "perhaps")
    if comparison.samples < _FEW_SAMPLES:
        answer = _worse(answer, "perhaps")
        notes.append(
            f"Only {comparison.samples} samples were looked at: measure on {_FEW_SAMPLES} or more."
        )
    notes += _beside_bf16(row, comparison)
    return Decision(answer, " ".join([f"{_WORDS[answer]}: {quality}.", *filter(None, notes)]))


def _worse(one: Answer, other: Answer) -> Answer:
    return max(one, other, key=_ORDER.index)


def _level(value: float, limits: tuple[float, float]) -> Answer:
    return "yes" if value >= limits[0] else "perhaps" if value >= limits[1] else "no"


def _quality(row: Row, fp32: Row, comparison: Comparison) -> tuple[Answer, str]:
    if row.metric is not None and fp32.metric is not None:
        return _by_metric(row, row.metric, fp32.metric, comparison)
    if row.agreement is not None:
        words = f"{row.agreement:.2f} % of its decisions are the float model's"
        return _level(row.agreement, _AGREEMENT), words
    if row.sqnr_db is not None:
        words = f"its outputs are within {row.sqnr_db:.1f} dB of the float model's"
        return _level(row.sqnr_db, _SQNR_DB), words
    return "perhaps", "its outputs could not be compared with the float model's"


def _by_metric(row: Row, own: float, floats: float, comparison: Comparison) -> tuple[Answer, str]:
    name = comparison.metric
    if name == "perplexity":
        words = f"its perplexity is {own:.2f}, the float model's {floats:.2f}"
        return _level(-own / floats, (-_PERPLEXITY[0], -_PERPLEXITY[1])), words
    if name not in ("top1", "top5"):  # whether more is better only its owner knows
        return (
            "perhaps",
            f"{name} is {own:.4g}, the float model's {floats:.4g}: which is enough or not",
        )
    title = {"top1": "top-1", "top5": "top-5"}[name]
    words = f"{title} is {own:.2f} %, the float model's {floats:.2f} %"
    loss = floats - own
    if loss <= 0:
        return "yes", words
    if row.p_value is not None and row.p_value >= LEVEL:
        words += f", a difference within chance on {comparison.samples} samples"
        return "yes" if loss <= _LOSS else "perhaps", words
    return "perhaps" if loss <= _LOSS else "no", f"{words}, a loss of {loss:.2f} points"


def _gain(row: Row) -> tuple[bool, str]:
    """Whether it brings anything, and what."""
    claims, brings = [], False
    if row.size_ratio:
        brings |= row.size_ratio < 1
        ratio = max(row.size_ratio, 1 / row.size_ratio)
        claims.append(f"{ratio:.1f}x {'smaller' if row.size_ratio <= 1 else 'larger'}")
    if row.speedup:
        brings |= row.speedup > 1
        ratio = max(row.speedup, 1 / row.speedup)
        claims.append(f"{ratio:.1f}x {'faster' if row.speedup >= 1 else 'slower'}")
    return brings, f"It is {' and '.join(claims)} than the float model." if claims else ""


def _beside_bf16(row: Row, comparison: Comparison) -> list[str]:
    bf16 = next((other for other in comparison.rows if other.name == "bf16"), None)
    if bf16 is None or not bf16.speedup or not row.speedup or bf16.speedup <= row.speedup:
        return []
    ratio = bf16.speedup / row.speedup
    return [
        f"bfloat16 is {ratio:.1f}x faster than it here, needs no data, and is half the float "
        "model's size."
    ]
