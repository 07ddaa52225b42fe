"""TFLite's model metadata: what the classes are called, and how an image is normalized.

Android's and MediaPipe's libraries read it from the file: a flatbuffer of its own, of which the
tables below are the part that Octavo writes (``metadata_schema.fbs`` of tflite-support, file
identifier M001), and the labels as a text in a zip archive behind the model.

Tested in tests/runtimes/litert/test_metadata.py.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.pixels import Pixels
from octavo.runtimes.litert.flatbuffer import builder

NAME = "TFLITE_METADATA"  # of the entry in the model that holds the flatbuffer
LABELS = "labels.txt"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the version that knows all of these tables
_AXIS_LABELS, _IMAGE, _NORMALIZATION = 2, 2, 1  # of AssociatedFileType and of two unions
_COLORS = {1: 2, 3: 1}  # channels -> GRAYSCALE, RGB
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that equal models give equal files


@dataclass(frozen=True)
class Metadata:
    """What a file says of its ends.

    Attributes:
        labels: a name for each class of the first result, in order; none where there are none.
        pixels: what an image is normalized by before the model gets it; ``None`` for no image.
    """

    labels: Sequence[str] = ()
    pixels: Pixels | None = None

    def __bool__(self) -> bool:
        return bool(self.labels) or self.pixels is not None

    def check(self, dtype: str, image: Sequence[int], scores: Sequence[int]) -> None:
        """Refuse what does not fit the file.

        Args:
            dtype: of the model's first input.
            image: its shape in the file, channels last.
            scores: that of the first result.

        Raises:
            ExportError: it names the numbers.
        """
        if self.labels and len(self.labels) != scores[-1]:
            raise ExportError(
                f"there are {len(self.labels)} labels, and the model's first result has "
                f"{scores[-1]} classes: give one for each"
            )
        if any("\n" in label or "\r" in label for label in self.labels):
            raise ExportError("a label has a line break; in the file each stands on a line")
        if self.pixels is None:
            return
        if dtype != "float32":
            raise ExportError(
                f"the model's first input is {dtype}, which it normalizes by itself: leave "
                "input_scale, input_mean and input_std out"
            )
        counts = {len(self.pixels.mean), len(self.pixels.std)}
        if len(image) != 4 or not counts <= {1, image[-1]}:
            raise ExportError(
                f"input_mean is {self.pixels.mean}, input_std {self.pixels.std}, and the model's "
                f"first input is {list(image)} in the file: give one number, or one for each "
                "channel of an image"
            )

    def packed(
        self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
    ) -> bytes:
        """The flatbuffer, of inputs and results with their shapes in the file."""
        b = builder(1024)
        first, scores = next(iter(inputs), ""), next(iter(outputs), "")
        read = [
            self._tensor(b, name, shape, name == first, False) for name, shape in inputs.items()
        ]
        made = [
            self._tensor(b, name, shape, False, name == scores) for name, shape in outputs.items()
        ]
        graph = _table(b, 5, {2: _vector(b, read), 3: _vector(b, made)})
        graphs, parser = _vector(b, [graph]), b.CreateString(_PARSER)
        b.Finish(_table(b, 8, {3: graphs, 7: parser}), _IDENTIFIER)
        return bytes(b.Output())

    def with_files(self, model: bytes) -> bytes:
        """A model's file with the labels behind it."""
        if not self.labels:
            return model
        held = io.BytesIO(model)
        with zipfile.ZipFile(held, "a") as archive:
            archive.writestr(zipfile.ZipInfo(LABELS, _LONG_AGO), "\n".join(self.labels))
        return held.getvalue()

    def _tensor(
        self, b: Any, name: str, shape: Sequence[int], is_image: bool, has_labels: bool
    ) -> int:
        fields = {0: b.CreateString(name)}
        if is_image and self.pixels is not None:
            image = _table(b, 2, {}, {0: _COLORS.get(shape[-1], 0)})
            fields[3] = _table(b, 3, {1: image}, {0: _IMAGE})
            numbers = {  # of pixels from 0 to 255
                place: b.CreateNumpyVector(
                    (np.asarray(values) / self.pixels.scale).astype(np.float32)
                )
                for place, values in ((0, self.pixels.mean), (1, self.pixels.std))
            }
            unit = _table(b, 2, {1: _table(b, 2, numbers)}, {0: _NORMALIZATION})
            fields[4] = _vector(b, [unit])
        if has_labels and self.labels:
            file = _table(b, 4, {0: b.CreateString(LABELS)}, {2: _AXIS_LABELS})
            fields[6] = _vector(b, [file])
        return _table(b, 7, fields)


def _table(b: Any, size: int, offsets: Mapping[int, int], kinds: Mapping[int, int] = {}) -> int:
    """A table of so many fields: those that refer to something, and those that are a byte."""
    b.StartObject(size)
    for place, offset in offsets.items():
        b.PrependUOffsetTRelativeSlot(place, offset, 0)
    for place, kind in kinds.items():
        b.PrependUint8Slot(place, kind, 0)
    return int(b.EndObject())


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())
