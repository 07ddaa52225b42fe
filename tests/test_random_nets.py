"""Random networks on every runtime: none is wrong without a word.

`make sweeps` takes 104 of them, `make fuzz` 2000; ``OCTAVO_RANDOM_NETS`` says how many, and
``OCTAVO_RANDOM_SEED`` the first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from random_nets_run import AGREES, CRASHED, REPORTED, RUNTIMES, UNREPORTED, findings

PARTS = 8
_NETS = int(os.environ.get("OCTAVO_RANDOM_NETS", "104"))
_SEED = int(os.environ.get("OCTAVO_RANDOM_SEED", "0"))


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_no_runtime_is_wrong_without_a_word(part: int) -> None:
    each = _NETS // PARTS
    first = _SEED + part * each
    rows = list(findings(range(first, first + each)))
    _check(rows)
    # What lowering refuses is rare, and the runtime of torch is ours.
    reported = [row for row in rows if row["found"] == REPORTED]
    assert not [row for row in reported if row["runtime"] == "torch"], reported
    counts = Counter(row["found"] for row in rows)
    assert counts[AGREES] >= 0.95 * len(rows), "\n".join(map(str, reported))


@pytest.mark.sweep
@pytest.mark.skipif("openvino" not in RUNTIMES, reason="OpenVINO cannot act out such a CPU")
def test_networks_that_openvino_ended_the_process_on() -> None:
    """Branches that are joined, and padded by nothing before the next convolution."""
    seeds = (178, 3011, 3016, 3044)
    rows = list(findings(seeds))
    _check(rows)
    found = {row["seed"]: row["found"] for row in rows if row["runtime"] == "openvino"}
    assert found == dict.fromkeys(seeds, AGREES), rows


@pytest.mark.sweep
def test_networks_that_runtimes_computed_otherwise() -> None:
    """OpenVINO several channels of one at a single voxel; ONNX Runtime a softmax of one value, and
    an average that is rounded to far finer steps than what it is of.
    """
    seeds = (31065, 31757, 31148)
    rows = list(findings(seeds))
    _check(rows)
    assert [row["found"] for row in rows] == [AGREES] * len(seeds) * len(RUNTIMES), rows


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    bad = [row for row in rows if row["found"] in (UNREPORTED, CRASHED)]
    assert not bad, "\n".join(map(str, bad))
