"""A folder that keeps the blocks of a model that are rounded: what was cut off goes on behind them.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.errors import InputError
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.model.files import sealed
from octavo.model.files.atomic import require_writable
from octavo.numerics.affine import QParams
from octavo.quantization.weights import WeightMethod

_KEYS = ("format", "version", "of")
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Of one model and its methods; without a folder it keeps nothing.

    Attributes:
        folder: where; a file for each block.
        of: tells one model, its schemes and methods from others.
    """

    folder: Path | None
    of_what: str

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

    def write(self, path: str, layers: Mapping[str, FloatLayer]) -> None:
        """Keep the layers of a block.

        Raises:
            ArtifactError: it cannot be written.
        """
        if self.folder is None:
            return
        tensors = {}
        for at, one in layers.items():
            tensors[f"{at}.integers"] = one.now.integers
            tensors[f"{at}.scale"] = one.now.qparams.scale
            tensors[f"{at}.zero_point"] = one.now.qparams.zero_point
        metadata = {"format": sealed.FORMAT, "version": str(_VERSION), "of": self.of_what}
        sealed.write(self._file(path), metadata, tensors, _KEYS)

    def read(self, path: str, layers: Mapping[str, FloatLayer]) -> bool:
        """Take the layers of a block as they were kept; whether they were.

        Raises:
            InputError: they are those of another model, or of other methods.
            ArtifactError: the file was damaged or altered.
        """
        if self.folder is None or not self._file(path).exists():
            return False
        with sealed.reading(self._file(path)):
            metadata, tensors = sealed.read(self._file(path))
            sealed.check_header(metadata, (*_KEYS, sealed.SEAL), range(1, _VERSION + 1))
            sealed.check_seal(metadata, tensors, _KEYS)
        if metadata["of"] != self.of_what:
            raise InputError(
                f"{self.folder} is the checkpoint of another model, other rules or other methods: "
                "give the same ones, or another folder"
            )
        for at, one in layers.items():
            scale, zero_point = tensors[f"{at}.scale"], tensors[f"{at}.zero_point"]
            qparams = QParams(scale, zero_point, one.now.qparams.scheme)
            one.now = replace(one.now, integers=tensors[f"{at}.integers"], qparams=qparams)
        return True

    def _file(self, path: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{path}.safetensors"
