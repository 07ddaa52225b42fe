"""Packages: compiled ahead of time, loaded in a fresh process. One compilation takes long."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ArtifactError, ExportError

LOAD = """
import sys
import torch
import octavo
model = octavo.load_package(sys.argv[1])
given = torch.load(sys.argv[2], weights_only=True)
torch.save([model(x)["scores"] for x in given], sys.argv[3])
for wrong in (given[0][:, 0], given[0] * float("nan")):
    try:
        model(wrong)
    except octavo.OctavoError as error:
        print(error)
"""


class Net(nn.Module):
    """One channel in, a shortcut, pooling, a linear layer, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.classes = nn.MaxPool2d(2), nn.Linear(8 * 16, 10)

    def forward(self, image):
        h = self.a(image).relu()
        h = self.pool((self.b(h) + h).relu())
        return {"scores": self.classes(h.flatten(1))}


@pytest.mark.sweep
def test_a_package_gives_what_the_torch_runtime_gives(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    q = octavo.quantize(Net(), x, calibration=[x], target="x86-avx2", progress=False)
    package, given, found = (str(tmp_path / name) for name in ("m.pt2", "given", "found"))
    octavo.export_package(q, package)
    batches = [torch.randn(count, 1, 8, 8) for count in (1, 5)]
    torch.save(batches, given)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, package, given, found],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "input 'image' is" in run.stdout  # a dimension too few
    assert "'image' has NaN or an infinity in the samples [0]" in run.stdout
    for batch, result in zip(batches, torch.load(found, weights_only=True), strict=True):
        # The shortcut is added to the integers here, there within the kernel: half a step apart.
        assert torch.allclose(result, q(batch)["scores"], atol=0.02)
        assert torch.equal(result.argmax(1), q(batch)["scores"].argmax(1))


def test_what_is_no_package(tmp_path):
    file = tmp_path / "m.pt2"
    file.write_bytes(b"not a package")
    with pytest.raises(ArtifactError, match=r"m\.pt2 is not a package"):
        octavo.load_package(file)
    with pytest.raises(ArtifactError):
        octavo.load(file)
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), mode="dynamic", progress=False)
    with pytest.raises(ExportError, match=r"ends in \.pt2"):
        octavo.export_package(q, tmp_path / "m.so")
