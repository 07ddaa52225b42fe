"""The demo's network as files for phones, which are run from the disk, one image at a time.

Tested in tests/cli/demo/test_phones.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import MissingExtra
from octavo.measuring.comparison_table import Comparison, Row
from octavo.model.executorch_file import export_executorch
from octavo.model.model import QuantizedModel
from octavo.model.tflite_file import export_tflite
from octavo.runtimes.executorch.package import method_of
from octavo.runtimes.executorch.package import package as executorch
from octavo.runtimes.litert.package import package as litert

TARGET = "edge"  # both formats have its integers
Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file, of a model that takes one image.

    Attributes:
        file: its name.
        package: imports what it needs, or raises `MissingExtra`.
        write: model, path -> nothing.
        load: path -> what gives an image's scores.
    """

    file: str
    package: Callable[[], Any]
    write: Callable[[QuantizedModel, Path], object]
    load: Callable[[Path], Scores]


class PhoneFile(nn.Module):
    """A file as a model: float32 ``[N, 1, 28, 28]`` -> class scores ``[N, 10]``."""

    def __init__(self, path: Path, scores: Scores) -> None:
        super().__init__()
        self.path, self.scores = path, scores

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.scores(image) for image in x.split(1)])


def _of_litert(path: Path) -> Scores:
    interpreter = litert().Interpreter(model_path=str(path), num_threads=1)
    run = interpreter.get_signature_runner()
    (entry,), (result,) = run.get_input_details(), run.get_output_details()

    def scores(image: Tensor) -> Tensor:
        channels_last = image.permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(run(**{entry: channels_last})[result])

    return scores


def _of_executorch(path: Path) -> Scores:
    run = method_of(path.read_bytes())

    def scores(image: Tensor) -> Tensor:
        made: Any = run([image.contiguous()])[0]
        return torch.as_tensor(made).clone()  # the next call has the same memory

    return scores


# The row of a file -> what writes and runs it.
FORMATS: Mapping[str, Format] = {
    "LiteRT": Format("model.tflite", litert, export_tflite, _of_litert),
    "ExecuTorch": Format("model.pte", executorch, export_executorch, _of_executorch),
}


def phone_files(
    quantized: Callable[[], QuantizedModel], folder: Path, say: Callable[[str], object]
) -> dict[str, PhoneFile]:
    """Write the files whose packages are installed; a line says which others there are.

    Args:
        quantized: gives the model for `TARGET`; not called where no package is there.
        folder: for the files.
        say: is told what is missing.

    Raises:
        ExportError: a file does not compute what the model says.
    """
    files: dict[str, PhoneFile] = {}
    made: QuantizedModel | None = None
    for name, form in FORMATS.items():
        path = folder / form.file
        try:
            form.package()
        except MissingExtra as missing:
            say(f"{form.file} is left out: {missing}")
            continue
        made = made or quantized()
        form.write(made, path)
        files[name] = PhoneFile(path, form.load(path))
    return files


def with_their_sizes(comparison: Comparison, files: Mapping[str, PhoneFile]) -> Comparison:
    """A comparison whose rows of files have the files' bytes, and a note on how they ran."""
    if not files:
        return comparison
    whole = comparison["fp32"].size_bytes

    def sized(row: Row) -> Row:
        if row.name not in files:
            return row
        size = files[row.name].path.stat().st_size
        return replace(row, size_bytes=size, size_ratio=size / whole if whole else None)

    names = " and ".join(f"{name} ({file.path.name})" for name, file in files.items())
    note = f"{names}: for phones, target {TARGET!r}; a batch is run here one image at a time"
    rows = tuple(map(sized, comparison.rows))
    return replace(comparison, rows=rows, notes=(*comparison.notes, note))
