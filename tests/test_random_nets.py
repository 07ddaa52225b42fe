"""Random networks on every runtime: none is wrong without a word.

``OCTAVO_RANDOM_NETS=2000 pytest tests/test_random_nets.py`` takes more of them than the usual 200,
and ``OCTAVO_RANDOM_SEED`` others.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from random_nets_run import AGREES, CRASHED, REPORTED, UNREPORTED, findings

PARTS = 8
_NETS = int(os.environ.get("OCTAVO_RANDOM_NETS", "200"))
_SEED = int(os.environ.get("OCTAVO_RANDOM_SEED", "0"))


@pytest.mark.parametrize("part", range(PARTS))
def test_no_runtime_is_wrong_without_a_word(part: int) -> None:
    each = _NETS // PARTS
    rows = list(findings(_SEED + part * each, _SEED + (part + 1) * each))
    wrong = [row for row in rows if row["found"] == UNREPORTED]
    assert not wrong, "\n".join(map(str, wrong))
    # OpenVINO ends the process on some networks, which we cannot catch: of the usual ones on seed
    # 178, in its compiler; and where AVX2 is acted out, on norms of what 16 does not divide.
    crashed = [row for row in rows if row["found"] == CRASHED]
    assert not [row for row in crashed if row["runtime"] != "openvino"], crashed
    rows = [row for row in rows if row not in crashed]
    # What lowering refuses is rare, and the runtime of torch is ours.
    reported = [row for row in rows if row["found"] == REPORTED]
    assert not [row for row in reported if row["runtime"] == "torch"], reported
    counts = Counter(row["found"] for row in rows)
    assert counts[AGREES] >= 0.95 * len(rows), "\n".join(map(str, reported))
