"""What peers take long to build is kept in a folder, whose name says what it is made of."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from octavo.runtimes.cpu import saturates

FOLDER = Path(__file__).parent / ".cache" / "peers"
_PACKAGES = "torch onnx onnxruntime openvino nncf".split()


@dataclass(frozen=True)
class Kept:
    """Files of one network.

    Attributes:
        folder: of the network, the data it was quantized with, and the versions of all packages;
            ``None`` keeps nothing, so that everything is built anew.
    """

    folder: Path | None

    @classmethod
    def of(cls, net: nn.Module, tensors: Sequence[Tensor]) -> Kept:
        """Those of a network and the tensors that it is shown."""
        digest = hashlib.sha256(repr(net).encode())
        for name, tensor in [*net.state_dict().items(), *enumerate(tensors)]:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().numpy().data)
        versions = [f"{package} {version(package)}" for package in _PACKAGES]
        digest.update(f"{versions} {saturates()}".encode())
        return cls(FOLDER / digest.hexdigest()[:24])

    def file(self, name: str, write: Callable[[Path], object]) -> Path:
        """A file of this name, written where it is not there yet; what lies beside it is kept too.

        Args:
            name: of the file, as ``"model.onnx"``.
            write: writes it, and maybe others, into a folder, given its path.
        """
        if self.folder is None:
            parent = Path(tempfile.mkdtemp())
            write(parent / name)
            return parent / name
        place = self.folder / name / name
        if not place.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Whole, then in its place: whoever is killed leaves no half file.
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                whole = Path(made) / name
                whole.mkdir()
                write(whole / name)
                os.replace(whole, place.parent)
        return place
