"""Data sets that torchvision knows where to find.

Tested in tests/cli/demo/test_digits.py.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from octavo.errors import InputError
from octavo.model.files.source_file import reason


def downloaded(name: str, folder: Path, files: str, **options: Any) -> Any:
    """A data set out of its files in a folder, into which torchvision downloads them, with a bar,
    where they are missing.

    Args:
        name: of its class in ``torchvision.datasets``.
        folder: has to exist, so that one letter too few in it begins no download.
        files: which, and whereto, for who has no network: ``"put a.gz into data/raw"``.
        options: of the class.

    Raises:
        InputError: there is no such folder; torchvision cannot be imported, or the files cannot be
            reached.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}: name the one with {name}'s files, or make an empty one, "
            "into which they are downloaded"
        )
    try:
        datasets = import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{folder} lacks {name}'s files, and torchvision, which downloads them, cannot be "
            f"imported ({reason(error)}): pip install torchvision, or {files}"
        ) from None
    try:
        return getattr(datasets, name)(str(folder), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{folder} lacks {name}'s files, and they cannot be downloaded ({reason(error)}): "
            f"{files}"
        ) from error
