from __future__ import annotations

import json
import math

import pytest

from octavo.measuring.comparison_table import Comparison, Row

FP32 = Row("fp32", "eager", 4_000_000, 1.0, 98.0, None, None, 8.0, 9.0, 8000.0, 1.0)
BF16 = Row("bf16", "eager", 2_000_000, 0.5, error="RuntimeError: no such kernel")
INT8 = Row(
    *("int8", "torch", 1_000_000, 0.25, 97.8, 99.5, 41.25, 2.0, 2.5, 32000.0, 4.0),
    interval=(96.1, 98.8),
    lost=3,
    won=2,
    p_value=1.0,
)


@pytest.fixture
def comparison() -> Comparison:
    environment = {"cpu": "A CPU", "isa": "AVX2", "torch": "torch 2"}
    return Comparison((FP32, BF16, INT8), "top1", 500, 64, 2, 30, environment, ("a note",))


def test_the_dict_has_a_key_for_each_row(comparison: Comparison) -> None:
    data = comparison.to_dict()
    assert list(data) == ["fp32", "bf16", "int8", "settings"]
    assert data["int8"] == {
        "size_mb": 1.0,
        "size_bytes": 1_000_000,
        "size_ratio": 0.25,
        "top1": 97.8,
        "interval": [96.1, 98.8],
        "lost": 3,
        "won": 2,
        "p_value": 1.0,
        "agreement": 99.5,
        "sqnr_db": 41.25,
        "latency_ms": 2.0,
        "p95_ms": 2.5,
        "throughput": 32000.0,
        "speedup": 4.0,
        "load_s": None,
        "memory_mb": None,
        "integers": None,
        "loss": None,
        "divergence": None,
        "runtime": "torch",
        "error": None,
    }
    assert data["bf16"]["error"] == "RuntimeError: no such kernel"
    assert data["bf16"]["latency_ms"] is None
    assert (data["settings"]["threads"], data["settings"]["batch_size"]) == (2, 64)
    assert data["settings"]["notes"] == ["a note"]


def test_json_is_json_even_with_equal_outputs() -> None:
    equal = Row("int8", "torch", sqnr_db=math.inf)
    comparison = Comparison((FP32, equal), "top1", 1, 1, 1, 1)
    assert json.loads(comparison.to_json())["int8"]["sqnr_db"] is None
    assert "equal" in str(comparison)


def test_a_row_is_found_by_its_name(comparison: Comparison) -> None:
    assert comparison["int8"] is INT8
    with pytest.raises(KeyError, match="'int4' is not among"):
        comparison["int4"]


def test_markdown(comparison: Comparison) -> None:
    lines = comparison.to_markdown().splitlines()
    assert lines[0].startswith("| contender | size MB | of fp32 | top-1 % | 95 % range | p |")
    assert lines[2].startswith("| fp32 | 4.00 | 1.000 | 98.00 | - | - |")
    assert lines[4] == (
        "| int8 | 1.00 | 0.250 | 97.80 | 96.1-98.8 | 1 | 99.50 | 41.2 | 2.00 | 2.50 | 32,000 "
        "| 4.00x |"
    )
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "bf16 could not run: RuntimeError: no such kernel" in comparison.to_markdown()


def test_text_states_how_it_was_measured(comparison: Comparison) -> None:
    text = " ".join(str(comparison).split())
    for stated in ("500 samples", "batch of 64", "2 threads", "30 interleaved rounds", "A CPU"):
        assert stated in text
    assert "a note" in text
    assert max(map(len, str(comparison).splitlines())) <= 80
    assert "…" not in text


def test_five_contenders_fit_a_terminal() -> None:
    names = ("fp32", "bf16", "int8 torch", "int8 onnxruntime", "int8 openvino")
    rows = tuple(
        Row(n, "torch", 1_000_000, 0.25, 99.5, 99.5, 41.2, 2.0, 2.5, interval=(98.1, 100.0))
        for n in names
    )
    text = str(Comparison(rows, "top1", 500, 64, 2, 30))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("98.1-100.0") == 5
    assert "onnxruntime" in text


def test_many_contenders_are_continued_below() -> None:
    rows = tuple(Row(f"model{n}", "torch", 1_000_000, latency_ms=2.0) for n in range(8))
    text = str(Comparison(rows, "top1", 500, 64, 2, 30))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("size MB") == 2
    assert all(row.name in text for row in rows)


def test_the_verdict_says_what_is_larger() -> None:
    larger = Row("other", "eager", 8_000_000, 2.0, latency_ms=4.0, speedup=2.0)
    verdict = Comparison((FP32, BF16, larger), "top1", 500, 64, 2, 30).verdict()
    assert verdict == "other: 2.00x LARGER than fp32, 2.00x faster than fp32"


def test_columns_without_a_value_are_left_out() -> None:
    comparison = Comparison((Row("fp32", "eager", 1, 1.0, latency_ms=1.0),), "top1", 1, 1, 1, 1)
    assert "top-1" not in str(comparison)
    assert "median ms" in str(comparison)


def test_the_verdict(comparison: Comparison) -> None:
    assert comparison.verdict() == (
        "int8: 4.00x smaller than fp32, 4.00x faster than fp32, top-1 -0.20 points "
        "(within chance, p = 1)"
    )


@pytest.mark.parametrize(
    ("lost", "won", "p_value", "words"),
    [
        (7, 3, 0.34, "(within chance, p = 0.34)"),
        (30, 5, 0.00002, "(a real loss, p = 2e-05)"),
        (2, 10, 0.0386, "(a real gain, p = 0.039)"),
    ],
)
def test_the_verdict_tells_chance_from_loss(
    lost: int, won: int, p_value: float, words: str
) -> None:
    row = Row("int8", "torch", metric=97.0, lost=lost, won=won, p_value=p_value)
    comparison = Comparison((FP32, row), "top1", 500, 1, 1, 1)
    assert comparison.verdict() == f"int8: top-1 -1.00 points {words}"
    assert "McNemar's exact test" in comparison.caption()


def test_the_verdict_does_not_flatter() -> None:
    half = Row("bf16", "eager", latency_ms=1.0, speedup=8.0)
    slow = Row("int8", "torch", latency_ms=2.0, speedup=4.0, agreement=97.0)
    verdict = Comparison((FP32, half, slow), "f1", 1, 1, 1, 1).verdict()
    assert verdict == (
        "int8: 4.00x faster than fp32, 2.00x SLOWER than bf16, 97.00 % of the decisions are fp32's"
    )


def test_a_metric_of_the_users_own_has_no_percent_sign() -> None:
    rows = (Row("fp32", "eager", metric=0.5), Row("int8", "torch", metric=0.25))
    comparison = Comparison(rows, "f1", 1, 1, 1, 1)
    assert "f1 %" not in str(comparison)
    assert comparison.verdict() == "int8: f1 -0.25"
    assert comparison.to_dict()["int8"]["f1"] == 0.25
