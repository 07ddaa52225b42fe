"""What a search found, and how it prints."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from octavo.arguments import of
from octavo.display import Result, Table
from octavo.errors import InputError
from octavo.model.files.source_file import check_file, reason
from octavo.searching.layer_times import LayerTime
from octavo.searching.records import from_json
from octavo.searching.trial import Trial


@dataclass(frozen=True)
class SearchResult(Result):
    """What a search found. Prints as a table.

    Attributes:
        best: the trial to take; ``None`` where none met the budget.
        model: its model: a `QuantizedModel`, or of the float model's class where that has regions.
        trials: all, in the order in which they were made.
        objective: ``"fastest"`` or ``"smallest"``.
        max_drop: what the metric was allowed to lose.
        float_metric: of the float model.
        float_bytes: size of its weights.
        bf16_over_fp32: latency of bf16 over that of fp32; ``None`` where bf16 fails.
        complete: whether all candidates were tried; else the time was up before.
        seconds: that this run of the search took.
        layer_times: how long each layer takes in float and in int8, where that was measured.

    Example:
        >>> found = octavo.search(model, calibration=loader, data=loader, max_drop=5.0)
        >>> found.best.drop <= 5.0, found.complete
        (True, True)
    """

    best: Trial | None
    model: nn.Module | None
    trials: tuple[Trial, ...]
    objective: str
    max_drop: float
    float_metric: float
    float_bytes: int
    bf16_over_fp32: float | None
    complete: bool
    seconds: float
    layer_times: tuple[LayerTime, ...] | None = None

    def verdict(self) -> str:
        """The outcome in a sentence or two."""
        if self.best is None:
            return self._nothing_found()
        words = f"{self.best.name}: {self.best.metric:.2f} (float {self.float_metric:.2f})"
        if self.best.size_bytes is not None:
            words += f", {self.best.size_bytes / self.float_bytes:.2f} of the size"
        if self.best.over_fp32 is not None:
            words += f", {self.best.over_fp32:.2f} of fp32's time"
        words += "."
        over_fp32 = self.best.over_fp32 or 0.0
        slower = [
            name
            for name, time in (("fp32", 1.0), ("bf16", self.bf16_over_fp32))
            if time is not None and over_fp32 > time
        ]
        if slower:
            words += f" SLOWER than {' and '.join(slower)} here."
        if not self.complete:
            words += f" The time was up after {self._tried()}: there may be a better one."
        return words

    def _nothing_found(self) -> str:
        failed = [trial for trial in self.trials if trial.error]
        measured = [trial for trial in self.trials if trial.drop is not None]
        nearest = min(measured, key=lambda t: t.drop or 0.0, default=None)
        near = f"; nearest: {nearest.name}, -{nearest.drop:.3g}" if nearest else ""
        if not self.complete:
            return (
                f"The time was up after {self._tried()}, none of which loses at most "
                f"{self.max_drop:g}{near}: give the search more time."
            )
        if failed and not measured:
            return f"No candidate could be made: {failed[0].name}: {failed[0].error}"
        return f"No candidate loses at most {self.max_drop:g}{near}."

    def _tried(self) -> str:
        return f"{len(self.trials)} candidate{'s' * (len(self.trials) != 1)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, without the model."""
        data = {key: value for key, value in vars(self).items() if key != "model"}
        return {
            **data,
            "best": None if self.best is None else self.best.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "layer_times": [asdict(time) for time in self.layer_times or ()],
        }

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SearchResult:
        """What `to_json` wrote to a file (``octavo search --json``); its ``model`` is ``None``.

        Raises:
            InputError: the file is missing, or something else.
        """
        try:
            check_file(Path(path))
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            best, trials = data["best"], (from_json(Trial, trial) for trial in data["trials"])
            times = tuple(from_json(LayerTime, time) for time in data["layer_times"])
            values = {name: data[name] for name in _PLAIN}
            return cls(
                best=None if best is None else from_json(Trial, best),
                model=None,
                trials=tuple(trials),
                layer_times=times,
                **values,
            )
        except (OSError, KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(
                f"{path} is not the result of a search ({reason(error)}): octavo search --json "
                "prints one"
            ) from None

    def table(self) -> Table:
        return Table(_COLUMNS, tuple(map(self._cells, self.trials)), self.verdict())

    def _cells(self, trial: Trial) -> tuple[str, ...]:
        if trial.error:
            return (trial.name, "", "", "", "", f"{trial.seconds:.0f} s", trial.error)
        assert trial.size_bytes is not None
        best = self.best is not None and trial.name == self.best.name
        return (
            trial.name,
            f"{trial.metric:.2f}",
            f"{trial.drop:.2f}",
            f"{trial.size_bytes / 1e6:.2f} MB",
            f"{trial.over_fp32:.2f}",
            f"{trial.seconds:.0f} s",
            "taken" if best else ("" if trial.meets(self.max_drop) else "loses too much"),
        )


SEARCH = of(SearchResult, way_out="octavo.search returns one")
_PLAIN = (
    *("objective", "max_drop", "float_metric", "float_bytes", "bf16_over_fp32"),
    *("complete", "seconds"),
)
_COLUMNS = ("candidate", "metric", "drop", "size", "/ fp32 time", "took", "outcome")
