"""Files of version 1 load, and compute to the bit what they did when they were written.

Each ``<kind>.octavo`` stands beside ``<kind>.safetensors`` with an input ``x`` and the oracle's
result ``y``. All scales are powers of two, and the inputs multiples of 1/64, so that sums of floats
are exact in any order, and the bits the same on every CPU. They cannot be written again by later
versions, and are not to be changed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import octavo

FOLDER = Path(__file__).parent / "files_of_version_1"
KINDS = ("attention", "dynamic", "embedding", "static", "weight_only_int4", "weight_only_int8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_version_1_computes_what_it_did(kind: str) -> None:
    path = FOLDER / f"{kind}.octavo"
    with safe_open(path, "pt") as file:
        assert file.metadata()["version"] == "1"
    kept = load_file(FOLDER / f"{kind}.safetensors")
    q = octavo.load(path, runtime="reference")
    assert torch.equal(q(kept["x"]), kept["y"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_version_1_is_written_again(kind: str, tmp_path: Path) -> None:
    kept = load_file(FOLDER / f"{kind}.safetensors")
    octavo.load(FOLDER / f"{kind}.octavo", runtime="reference").save(tmp_path / "again.octavo")
    again = octavo.load(tmp_path / "again.octavo", runtime="reference")
    assert torch.equal(again(kept["x"]), kept["y"])


def test_every_kept_file_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.octavo")} == set(KINDS)
