"""What a file says of its ends, read back as Android's and MediaPipe's libraries do."""

from __future__ import annotations

import struct
import zipfile
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ExportError

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(*layers).eval()
    return octavo.quantize(net, calibration=[x], target="edge", progress=False)


class Table:
    """A table of a flatbuffer, by its places: an offset to the next, with a list of fields."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - struct.unpack_from("<i", data, at)[0]

    def _place(self, field: int) -> int | None:
        size = struct.unpack_from("<H", self.data, self.fields)[0]
        entry = 4 + 2 * field
        moved = struct.unpack_from("<H", self.data, self.fields + entry)[0] if entry < size else 0
        return self.at + moved if moved else None

    def _target(self, field: int) -> int:
        place = self._place(field)
        assert place is not None, field
        return int(place + struct.unpack_from("<I", self.data, place)[0])

    def byte(self, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else self.data[place]

    def text(self, field: int) -> str:
        at = self._target(field)
        return self.data[at + 4 : at + 4 + struct.unpack_from("<I", self.data, at)[0]].decode()

    def table(self, field: int) -> Table:
        return Table(self.data, self._target(field))

    def tables(self, field: int) -> list[Table]:
        at = self._target(field)
        count = struct.unpack_from("<I", self.data, at)[0]
        places = [at + 4 + 4 * i for i in range(count)]
        return [Table(self.data, p + struct.unpack_from("<I", self.data, p)[0]) for p in places]

    def floats(self, field: int) -> list[float]:
        at = self._target(field)
        count = struct.unpack_from("<I", self.data, at)[0]
        return list(struct.unpack_from(f"<{count}f", self.data, at + 4))


def metadata_in(data: bytes) -> Table:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (entry,) = [each for each in model.metadata if each.name == b"TFLITE_METADATA"]
    packed = bytes(model.buffers[entry.buffer].data)
    assert packed[4:8] == b"M001"
    return Table(packed, struct.unpack_from("<I", packed, 0)[0])


def test_labels_and_normalization(q, tmp_path):
    path = tmp_path / "m.tflite"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    how: dict[str, Any] = {"labels": ["cat", "dog"], "input_mean": mean, "input_std": std}
    written = octavo.export_tflite(q, path, **how)
    assert written.agreement["xnnpack"].agrees  # LiteRT reads what stands in front of the archive
    assert written.flash_bytes == path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split("\n") == ["cat", "dog"]
    model = metadata_in(path.read_bytes())
    assert model.text(7) == "1.0.0"
    (graph,) = model.tables(3)
    (image,), (scores,) = graph.tables(2), graph.tables(3)
    assert (image.text(0), scores.text(0)) == ("input", "4")
    content = image.table(3)
    assert (content.byte(0), content.table(1).byte(0)) == (2, 1)  # an image, of RGB
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1  # normalization
    assert unit.table(1).floats(0) == pytest.approx([255 * m for m in mean])
    assert unit.table(1).floats(1) == pytest.approx([255 * s for s in std])
    (file,) = scores.tables(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # labels along an axis


def test_equal_models_give_equal_files(q, tmp_path):
    files = [tmp_path / name for name in ("a.tflite", "b.tflite")]
    for file in files:
        octavo.export_tflite(q, file, labels=["cat", "dog"], check=False)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"labels": ["cat"]}, r"there are 1 labels, and the model's first result has 2 classes"),
        ({"labels": ["cat", "d\nog"]}, "a label has a line break"),
        ({"input_mean": (0.5, 0.5)}, r"first input is \[1, 8, 8, 3\] in the file: give one number"),
    ],
)
def test_what_does_not_fit_is_not_written(q, how, reason, tmp_path):
    with pytest.raises(ExportError, match=reason):
        octavo.export_tflite(q, tmp_path / "m.tflite", **how)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_takes_pixels_normalizes_by_itself(tmp_path):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.rand(2, 3, 8, 8)
    raw = octavo.quantize(net, calibration=[x], target="edge", progress=False, input_scale=1 / 255)
    with pytest.raises(ExportError, match="first input is uint8, which it normalizes by itself"):
        octavo.export_tflite(raw, tmp_path / "m.tflite", input_scale=1 / 255)
