"""A folder that keeps the blocks of a model that are rounded: what was cut off goes on behind them.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.flow.running import Call, Run
from octavo.model.files import sealed
from octavo.model.files.atomic import require_writable
from octavo.numerics.affine import QParams
from octavo.quantization.weights import WeightMethod

_KEYS = ("format", "version", "of", "data")
_VERSION = 2


class Digest:
    """Tells the batches of one set of data from those of another."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def reading(self, runs: Iterable[Run]) -> Iterator[Run]:
        """The same runs; each batch is added before it is run."""
        for run in runs:
            if isinstance(run, Call):
                for tensor in run.batch.tensors:
                    self.add(tensor)
            yield run

    def add(self, tensor: Tensor) -> None:
        """Add a tensor of a batch."""
        self._sum.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1)
            self._sum.update(values.view(torch.uint8).numpy().data)

    def __str__(self) -> str:
        return self._sum.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """Of one model and its methods; without a folder it keeps nothing.

    Attributes:
        folder: where; a file for each block.
        of_what: tells one model, its schemes and methods from others.
        data: tells the data from other data; ``""`` before it was read.
    """

    folder: Path | None
    of_what: str
    data: str = ""

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str] | None,
        methods: Sequence[WeightMethod],
        layers: Mapping[str, FloatLayer],
    ) -> Checkpoint:
        """One that is begun, or goes on.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
        if folder is None:
            return cls(None, "")
        require_writable(folder)
        schemes = {path: str(one.layer.scheme) for path, one in layers.items()}
        weights = {path: one.layer.weight.contiguous().cpu() for path, one in layers.items()}
        about = {"methods": repr(list(methods)), "schemes": repr(schemes)}
        return cls(Path(folder), sealed.checksum(about, weights, tuple(about)))

    def of_data(self, digest: Digest) -> Checkpoint:
        """The same, of this data."""
        return replace(self, data=str(digest))

    def write(
        self, path: str, layers: Mapping[str, FloatLayer], scales: Mapping[str, Tensor]
    ) -> None:
        """Keep the layers of a block, and the scales of their inputs, by the layers' paths.

        Raises:
            ArtifactError: it cannot be written.
        """
        if self.folder is None:
            return
        tensors = {f"{at}.scales": values for at, values in scales.items()}
        for at, one in layers.items():
            tensors[f"{at}.integers"] = one.now.integers
            tensors[f"{at}.scale"] = one.now.qparams.scale
            tensors[f"{at}.zero_point"] = one.now.qparams.zero_point
        metadata = {
            "format": sealed.FORMAT,
            "version": str(_VERSION),
            "of": self.of_what,
            "data": self.data,
        }
        sealed.write(self._file(path), metadata, tensors, _KEYS)

    def read(self, path: str, layers: Mapping[str, FloatLayer]) -> dict[str, Tensor] | None:
        """Take the layers of a block as they were kept.

        Returns:
            The scales of their inputs; ``None`` where nothing was kept.

        Raises:
            InputError: they are those of another model, of other methods, or of other data.
            ArtifactError: the file was damaged or altered.
        """
        if self.folder is None or not self._file(path).exists():
            return None
        with sealed.reading(self._file(path)):
            metadata, tensors = sealed.read(self._file(path))
            sealed.check_header(metadata, (*_KEYS, sealed.SEAL), range(_VERSION, _VERSION + 1))
            sealed.check_seal(metadata, tensors, _KEYS)
        if metadata["of"] != self.of_what:
            raise InputError(
                f"{self.folder} is the checkpoint of another model, other rules or other methods: "
                "give the same ones, or another folder"
            )
        if metadata["data"] != self.data:
            raise InputError(
                f"{self.folder} is the checkpoint of other calibration data: give the same batches "
                "in the same order, or another folder"
            )
        for at, one in layers.items():
            scale, zero_point = tensors[f"{at}.scale"], tensors[f"{at}.zero_point"]
            qparams = QParams(scale, zero_point, one.now.qparams.scheme)
            one.now = replace(one.now, integers=tensors[f"{at}.integers"], qparams=qparams)
        return {
            name.removesuffix(".scales"): values
            for name, values in tensors.items()
            if name.endswith(".scales")
        }

    def _file(self, path: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{path}.safetensors"
