"""The folder that a search keeps: every finished trial, and the best model so far.

``search.json`` says of which search it is, ``trials.jsonl`` has a line for each trial, and
``best.octavo`` is the model to take if the search ends now; ``layers.json`` has the layers'
times once they are measured. Each is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.atomic import replacing, require_writable
from octavo.errors import ArtifactError, InputError
from octavo.model import QuantizedModel
from octavo.search.layer_times import LayerTime
from octavo.search.trial import Trial


class Journal:
    """Reads what a folder has, and adds to it; without a folder it keeps nothing.

    Args:
        folder: where; ``None`` for nowhere.
        search: what the search is about, JSON-able; a folder of another search is refused.

    Raises:
        InputError: the folder is of another search, or damaged.
        ArtifactError: it cannot be written to.
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
        found = _parsed(about, about.read_text())
        different = [key for key in search if found.get(key) != search[key]]
        if different:
            key = different[0]
            raise InputError(
                f"{self.folder} is the checkpoint of another search: its {key} is "
                f"{found.get(key)!r}, not {search[key]!r}; give another folder"
            )
        lines = self.folder / "trials.jsonl"
        for line in lines.read_text().splitlines() if lines.exists() else []:
            trial = Trial.from_dict(_parsed(lines, line))
            self.trials[trial.name] = trial
        layers = self.folder / "layers.json"
        if layers.exists():
            self.layer_times = tuple(
                LayerTime(**one) for one in _parsed(layers, layers.read_text())
            )

    def add(self, trial: Trial) -> None:
        """Keep a finished trial."""
        self.trials[trial.name] = trial
        if self.folder is not None:
            lines = [json.dumps(one.to_dict()) for one in self.trials.values()]
            _write(self.folder / "trials.jsonl", "\n".join(lines) + "\n")

    def keep_best(self, model: QuantizedModel) -> None:
        """This is the model to take if the search ends now."""
        if self.folder is not None:
            model.save(self.folder / "best.octavo")

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


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's parameters and buffers and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write_text(text)


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged ({error}): delete the folder to begin anew"
        ) from None
