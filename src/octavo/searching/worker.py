"""What a worker does: it makes a candidate's model and measures what is the same on every machine.

Latency is not: so that its ratios are honest, the process that searches measures all of them
itself, one at a time, while no worker is busy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from octavo.errors import OctavoError
from octavo.model.verbs import save
from octavo.searching.deadline import OutOfTime
from octavo.searching.measuring import value_of
from octavo.searching.recipe import Recipe
from octavo.searching.trial import Candidate, Trial


@dataclass(frozen=True)
class Built:
    """A candidate that was made.

    Attributes:
        trial: all but its latency; with an error if the candidate cannot be.
        model: its model; ``None`` with an error, or if the time was up.
    """

    trial: Trial
    model: nn.Module | None = None

    @property
    def finished(self) -> bool:
        """Whether it came to its end in time."""
        return self.model is not None or bool(self.trial.error)


@dataclass(frozen=True)
class Workshop:
    """Makes and judges candidates.

    Attributes:
        recipe: what they have in common.
        judge: from a model to the metric.
        float_metric: of the float model.
    """

    recipe: Recipe
    judge: Callable[[nn.Module], float]
    float_metric: float

    def opened(self) -> Callable[[Candidate], Built]:
        """What a worker does with a candidate."""
        return self.build

    def build(self, candidate: Candidate) -> Built:
        """Its model, metric and size; one that cannot be is a trial with an error."""
        started = time.perf_counter()
        nothing = blank(candidate)
        try:
            q = self.recipe.build(candidate)
            with self.recipe.deadline.watching(q):
                value = value_of(self.judge, q)
        except OutOfTime:
            return Built(nothing)
        except OctavoError as error:
            seconds = time.perf_counter() - started
            return Built(replace(nothing, seconds=seconds, error=str(error)))
        trial = replace(
            nothing,
            metric=value,
            drop=self.float_metric - value,
            size_bytes=_size_of_file(q),
            seconds=time.perf_counter() - started,
        )
        return Built(trial, q)


def blank(candidate: Candidate) -> Trial:
    """A trial of which nothing is known yet."""
    return Trial(candidate.name, candidate.reason, candidate.in_float)


def _size_of_file(q: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.octavo"
        save(q, file)
        return file.stat().st_size
