"""The loop of a search: what the walk asks for is made, timed, kept and answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from torch import nn

from octavo.errors import ArtifactError, OctavoError
from octavo.measuring.engines import Workers
from octavo.measuring.regions import graphs_in
from octavo.model.verbs import load_beside, summary
from octavo.progress import telling
from octavo.searching.deadline import OutOfTime
from octavo.searching.journal import Journal
from octavo.searching.layer_times import BUDGET_S, LayerTime
from octavo.searching.measuring import Stopwatch
from octavo.searching.recipe import Recipe
from octavo.searching.strategy import Known, Space, foreseen, next_of, walk
from octavo.searching.trial import Candidate, Trial
from octavo.searching.worker import Built, blank


class Loop:
    """Walks through candidates.

    With several workers, those that the walk will probably ask for next are made at the same time
    as the one that it asks for. What is made for nothing is forgotten, so that trials and their
    order do not depend on the workers.

    Attributes:
        best: the best trial so far.
    """

    def __init__(
        self,
        workers: Workers[Candidate, Built],
        recipe: Recipe,
        stopwatch: Stopwatch,
        journal: Journal,
        objective: str,
        max_drop: float,
    ) -> None:
        self.workers, self.recipe, self.stopwatch = workers, recipe, stopwatch
        self.journal, self.objective, self.max_drop = journal, objective, max_drop
        self.best: Trial | None = None
        self._best: tuple[Candidate, nn.Module | None] | None = None
        self._built: dict[str, Built] = {}  # ahead of the walk

    def run(self, space: Space) -> bool:
        """Try what the walk asks for; false if the time was up before its end."""
        known = Known(space)
        steps = walk(known.space)
        candidate: Candidate | None = next(steps)
        try:
            with telling("searching", self.recipe.progress) as tell:
                while candidate is not None:
                    trial, model = self.journal.trials.get(candidate.name), None
                    if trial is None:
                        trial, model = self._timed(self._made(candidate, known))
                    if trial.meets(self.max_drop):
                        self._consider(candidate, trial, model)
                    self.journal.add(trial)
                    tell(self._so_far())
                    candidate = next_of(steps, trial)
        except OutOfTime:
            return False
        return True

    def _so_far(self) -> str:
        best = f"best so far {self.best.name}" if self.best else "none good enough yet"
        return f"{len(self.journal.trials)} tried, {best}"

    def slower(self, candidate: Candidate) -> Sequence[LayerTime]:
        """The candidate's layers that int8 makes slower, the worst first; none for the smallest."""
        if self.objective != "fastest":
            return ()
        if self.journal.layer_times is None:
            self._check_time(BUDGET_S)
            model = self._best[1] if self._best and self._best[0] == candidate else None
            q = model or self.recipe.build(candidate)
            self.journal.keep_layer_times(self.recipe.layer_times(q))
        slower = [time for time in self.journal.layer_times or () if time.slower]
        return sorted(slower, key=lambda time: -time.int8_over_float)

    def best_model(self) -> nn.Module | None:
        """The best trial's model; of an earlier run, from its file, or made again."""
        if self._best is None:
            return None
        candidate, model = self._best
        if model is None and self.journal.best_file is not None:
            with suppress(ArtifactError):  # a damaged one is made again, as one that is missing
                kept = load_beside(self.journal.best_file, self.recipe.model, "torch")
                names = {q.provenance.get("candidate") for q in graphs_in(kept).values()}
                model = kept if names == {candidate.name} else None
        if model is None:
            model = self.recipe.without_end().build(candidate)
            self._keep(candidate, model)
        return model

    def _made(self, candidate: Candidate, known: Known) -> Built:
        """The candidate's model, and by the way those that will probably come next."""
        if candidate.name not in self._built:
            trials = self.journal.trials.values()
            self._check_time(max((trial.seconds for trial in trials), default=0.0))
            answers = self.journal.trials | {n: built.trial for n, built in self._built.items()}
            chosen = foreseen(known.only, answers, self.workers.slots)
            for one, built in self.workers.run(chosen):
                if isinstance(built, OctavoError):
                    built = Built(replace(blank(one), error=str(built)))
                self._built[one.name] = built
        built = self._built.pop(candidate.name)
        if not built.finished:
            raise OutOfTime
        return built

    def _timed(self, built: Built) -> tuple[Trial, nn.Module | None]:
        """The trial with its latency, measured here while all workers rest."""
        if built.model is None:
            return built.trial, None
        started = time.perf_counter()
        covered = summary(built.model).coverage
        over_fp32 = self.stopwatch.over_fp32(built.model)
        seconds = built.trial.seconds + time.perf_counter() - started
        trial = replace(
            built.trial,
            over_fp32=over_fp32,
            int8=covered.layers - len(covered.floats),
            layers=covered.layers,
            seconds=seconds,
        )
        return trial, built.model

    def _consider(self, candidate: Candidate, trial: Trial, model: nn.Module | None) -> None:
        """Keep it if it is the best; first the model, so that no trial stands without it."""
        if self.best is None or trial.cost(self.objective) < self.best.cost(self.objective):
            self.best, self._best = trial, (candidate, model)
            if model is not None:
                self._keep(candidate, model)

    def _keep(self, candidate: Candidate, model: nn.Module) -> None:
        for q in graphs_in(model).values():
            q.provenance["candidate"] = candidate.name
        self.journal.keep_best(model)

    def _check_time(self, seconds: float) -> None:
        """Raise `OutOfTime` if what takes so long would end too late."""
        if self.recipe.deadline.left < seconds:
            raise OutOfTime
