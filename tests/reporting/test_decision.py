"""The sentence for whoever decides: yes, perhaps or not yet, and why."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.measuring.comparison_table import Comparison, Row
from octavo.reporting.decision import Decision, decide

FLOAT = Row("fp32", "eager", 100, 1.0, 97.0, speedup=1.0)
HALF = Row("bf16", "eager", 50, 0.5, 97.0, speedup=1.3)


def decided(name: str = "top1", samples: int = 1000, fp32: float = 97.0, **int8: Any) -> Decision:
    row = Row("int8", "torch", **({"size_ratio": 0.25, "speedup": 2.0} | int8))
    baseline = Row("fp32", "eager", 100, 1.0, fp32, speedup=1.0)
    return decide(Comparison((baseline, HALF, row), name, samples, 1, 2, 5))


def test_the_whole_sentence() -> None:
    decision = decided(metric=96.8, p_value=0.6)
    assert decision.answer == "yes"
    assert decision.sentence == (
        "Yes, ship it: top-1 is 96.80 %, the float model's 97.00 %, a difference within chance on "
        "1000 samples. It is 4.0x smaller and 2.0x faster than the float model."
    )


@pytest.mark.parametrize(
    ("measured", "answer", "words"),
    [
        ({"metric": 97.4, "p_value": 0.01}, "yes", "top-1 is 97.40 %"),
        ({"metric": 96.5, "p_value": 0.01}, "perhaps", "a loss of 0.50 points"),
        ({"metric": 91.0, "p_value": 0.0}, "no", "Not yet: top-1 is 91.00 %"),
        ({"metric": 94.0, "p_value": 0.3, "samples": 100}, "perhaps", "Only 100 samples"),
        ({"agreement": 99.5}, "yes", "99.50 % of its decisions are the float model's"),
        ({"agreement": 90.0}, "no", "90.00 % of its decisions"),
        ({"sqnr_db": 25.0}, "perhaps", "within 25.0 dB"),
        ({"name": "perplexity", "fp32": 10.0, "metric": 10.05}, "yes", "perplexity is 10.05"),
        ({"name": "perplexity", "fp32": 10.0, "metric": 12.0}, "no", "perplexity is 12.00"),
        ({"name": "recall", "fp32": 0.5, "metric": 0.4}, "perhaps", "recall is 0.4"),
        ({"agreement": 100.0, "speedup": 0.5}, "perhaps", "2.0x slower than the float model"),
        (
            {"agreement": 100.0, "speedup": 1.1},
            "yes",
            "bfloat16 is 1.2x faster than it here, needs no data",
        ),
        ({"agreement": 100.0, "speedup": 0.5, "size_ratio": 1.1}, "no", "1.1x larger and 2.0x"),
        ({"error": "no memory"}, "no", "Not yet: int8 could not run: no memory."),
    ],
)
def test_answers(measured: dict[str, Any], answer: str, words: str) -> None:
    decision = decided(**measured)
    assert (decision.answer, words in decision.sentence) == (answer, True), decision.sentence


def test_nothing_to_decide() -> None:
    decision = decide(Comparison((FLOAT, HALF), "top1", 10, 1, 2, 5))
    assert decision == Decision("no", "Not yet: nothing was quantized.")
