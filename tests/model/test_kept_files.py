"""Files of each version of the format load, and compute to the bit what they did when written.

Each ``<kind>.octavo`` stands beside ``<kind>.safetensors`` with an input ``x`` and the oracle's
result ``y``. All scales are powers of two, and the inputs multiples of 1/64, so that sums of floats
are exact in any order, and the bits the same on every CPU. Those of version 1 cannot be written
again by later versions; none of them is to be changed. Version 3 is of models with parts, which are
loaded into the model's code; models of one graph are of version 2 beside it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import octavo
from octavo.model import parts_file
from octavo.model.artifact import VERSION

FOLDERS = {n: Path(__file__).parent / f"files_of_version_{n}" for n in range(1, VERSION + 1)}
OF_PARTS = Path(__file__).parent / f"files_of_version_{parts_file.VERSION}" / "parts.octavo"
KINDS = ("attention", "dynamic", "embedding", "static", "weight_only_int4", "weight_only_int8")
FILES = [(version, kind) for version in FOLDERS for kind in KINDS]


@pytest.mark.parametrize(("version", "kind"), FILES)
def test_a_file_computes_what_it_did(version: int, kind: str) -> None:
    path = FOLDERS[version] / f"{kind}.octavo"
    with safe_open(path, "pt") as file:
        assert file.metadata()["version"] == str(version)
    kept = load_file(path.with_suffix(".safetensors"))
    q = octavo.load(path, runtime="reference")
    assert torch.equal(q(kept["x"]), kept["y"])


@pytest.mark.parametrize(("version", "kind"), FILES)
def test_a_file_is_written_again(version: int, kind: str, tmp_path: Path) -> None:
    path = FOLDERS[version] / f"{kind}.octavo"
    kept = load_file(path.with_suffix(".safetensors"))
    octavo.load(path, runtime="reference").save(tmp_path / "again.octavo")
    with safe_open(tmp_path / "again.octavo", "pt") as file:
        assert file.metadata()["version"] == str(VERSION)
    again = octavo.load(tmp_path / "again.octavo", runtime="reference")
    assert torch.equal(again(kept["x"]), kept["y"])


class Parts(nn.Module):
    """A model whose way depends on a value, so that only its parts are captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x if x.sum() > 0 else -x)


def test_a_file_with_parts_computes_what_it_did() -> None:
    with safe_open(OF_PARTS, "pt") as file:
        assert file.metadata()["version"] == str(parts_file.VERSION)
    kept = load_file(OF_PARTS.with_suffix(".safetensors"))
    q = octavo.load(OF_PARTS, runtime="reference", into=Parts())
    assert torch.equal(q(kept["x"]), kept["y"])


@pytest.mark.parametrize("version", FOLDERS)
def test_every_kept_file_is_tried(version: int) -> None:
    assert {path.stem for path in FOLDERS[version].glob("*.octavo")} == set(KINDS)
