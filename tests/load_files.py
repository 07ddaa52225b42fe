"""Loads every file of a folder and runs what loads: ``python load_files.py FOLDER``.

In a process of its own, since a hostile file may kill it. Prints for each file, before and after,
a line that says how it ended: ``error`` (one that Octavo raises on purpose), ``runs``, or what else
was raised.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

import octavo
from octavo.errors import OctavoError


def outcome(path: Path, x: torch.Tensor) -> str:
    try:
        model = octavo.load(path)
        model(x)
        str(model.summary())
        str(model.plan)
    except OctavoError:
        return "error"
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
    return "runs"


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for path in sorted(folder.iterdir()):
        print(path.name, end=" ", flush=True)  # noqa: T201
        print(outcome(path, x), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
