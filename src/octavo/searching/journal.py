"""The folder that a search keeps: every finished trial, and the best model so far.

``search.json`` says of which search it is, ``trials.jsonl`` has a line for each trial, and
``best.octavo`` is the model to take if the search ends now; ``layers.json`` has the layers'
times once they are measured. Each is written whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from octavo.errors import ArtifactError, InputError, first_line
from octavo.model.files.atomic import replacing, require_writable
from octavo.model.verbs import save
from octavo.searching.identity import alike
from octavo.searching.layer_times import LayerTime
from octavo.searching.records import from_json
from octavo.searching.trial import Trial


class Journal:
    """Reads what a folder has, and adds to it; without a folder it keeps nothing.

    Args:
        folder: where; ``None`` for nowhere.
        search: what the search is about, JSON-able; a folder of another search is refused.

    Raises:
        InputError: the folder is of another search.
        ArtifactError: it is damaged, or cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, search: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.trials: dict[str, Trial] = {}
        self.layer_times: tuple[LayerTime, ...] | None = None
        if self.folder is None:
            return
        require_writable(self.folder)
        about = self.folder / "search.json"
        if not about.exists():
            _write(about, json.dumps(search, indent=1))
            return
        with _naming(about):
            known = json.loads(about.read_text("utf-8"))
            if not isinstance(known, dict):
                raise InputError("it does not describe a search")
        different = [key for key in search if not alike(known.get(key), search[key])]
        if different:
            key = different[0]
            raise InputError(
                f"{self.folder} is the checkpoint of another search: its {key} is "
                f"{known.get(key)!r}, not {search[key]!r}; give another folder"
            )
        lines = self.folder / "trials.jsonl"
        if lines.exists():
            with _naming(lines):
                for line in lines.read_text("utf-8").splitlines():
                    trial = from_json(Trial, json.loads(line))
                    self.trials[trial.name] = trial
        layers = self.folder / "layers.json"
        if layers.exists():
            with _naming(layers):
                times = json.loads(layers.read_text("utf-8"))
                self.layer_times = tuple(from_json(LayerTime, time) for time in times)

    def add(self, trial: Trial) -> None:
        """Keep a finished trial."""
        self.trials[trial.name] = trial
        if self.folder is not None:
            lines = [json.dumps(one.to_dict()) for one in self.trials.values()]
            _write(self.folder / "trials.jsonl", "\n".join(lines) + "\n")

    def keep_best(self, model: nn.Module) -> None:
        """This is the model to take if the search ends now."""
        if self.folder is not None:
            save(model, self.folder / "best.octavo")

    def keep_layer_times(self, times: tuple[LayerTime, ...]) -> None:
        """These were measured; another time they would be somewhat different."""
        self.layer_times = times
        if self.folder is not None:
            _write(
                self.folder / "layers.json", json.dumps([asdict(time) for time in times], indent=1)
            )

    @property
    def best_file(self) -> Path | None:
        """Where the best model is, if there is one."""
        file = None if self.folder is None else self.folder / "best.octavo"
        return file if file is not None and file.exists() else None


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write_text(text)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong with a file is one error that names it.

    Raises:
        ArtifactError: anything is.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        raise ArtifactError(
            f"{path} is damaged ({first_line(error)}): delete the folder to begin anew"
        ) from None
