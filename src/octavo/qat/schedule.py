"""When a model in training observes, rounds and freezes; and how fast it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from octavo.errors import TrainingError
from octavo.qat.model import QATModel

# Wu et al. 2020, Integer Quantization for Deep Learning Inference (arXiv:2004.09602), section 6.
SHARE_OF_STEPS = 0.1
SHARE_OF_LEARNING_RATE = 0.01


@dataclass
class Schedule:
    """Tells a `QATModel` what to do at each step, or at each epoch, whichever ``steps`` counts.

    Each moment is a share of ``steps``. The defaults: round from the start; let ranges follow for
    the first half; freeze batch norms for the last quarter, as what is deployed has their running
    statistics in its weights (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).

    Attributes:
        steps: of the whole training with rounding; about a tenth of the original training is
            enough, see `tenth_of`.
        fake_quantize_from: rounding starts; before it ranges are observed.
        observe_until: ranges stay as they are from here on.
        freeze_batch_norms_from: batch norms use their running statistics from here on.
        done: how many steps were made; part of `state_dict`, so that a training can be resumed.

    Raises:
        TrainingError: a share that is none, or no steps.

    Example:
        >>> schedule = Schedule(steps=10)
        >>> schedule.phase(0)
        Phase(fake_quantize=True, observe=True, freeze_batch_norms=False)
        >>> schedule.phase(9)
        Phase(fake_quantize=True, observe=False, freeze_batch_norms=True)
        >>> qat = octavo.prepare_qat(model, images)
        >>> for epoch in range(10):
        ...     phase = schedule.start(qat)
        ...     loss = qat(images).square().mean()  # yours: an epoch of training
        ...     schedule.step()
    """

    steps: int
    fake_quantize_from: float = 0.0
    observe_until: float = 0.5
    freeze_batch_norms_from: float = 0.75
    done: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TrainingError(f"steps is {self.steps}; a schedule has at least 1")
        for name in _SHARES:
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise TrainingError(f"{name} is {share}; it is a share of the steps, 0 to 1")
        if self.observe_until * self.steps < 1 and self.fake_quantize_from > 0:
            raise TrainingError("rounding starts late, and ranges are not observed before")

    @classmethod
    def tenth_of(cls, original_steps: int, **shares: float) -> Schedule:
        """The usual length: a tenth of the steps of the original training.

        Args:
            original_steps: of it.
            shares: the moments, where they are others than the defaults.

        Raises:
            TrainingError: a share that is none.
        """
        return replace(cls(max(1, round(SHARE_OF_STEPS * original_steps))), **shares)  # type: ignore[arg-type]

    def phase(self, step: int) -> Phase:
        """What holds at a step.

        Args:
            step: counted from 0.
        """
        now = step / self.steps
        return Phase(
            fake_quantize=now >= self.fake_quantize_from,
            observe=now < self.observe_until,
            freeze_batch_norms=now >= self.freeze_batch_norms_from,
        )

    def start(self, model: QATModel) -> Phase:
        """Put a model into the phase of the present step.

        Args:
            model: from `octavo.prepare_qat`.

        Returns:
            The phase.
        """
        phase = self.phase(self.done)
        model.fake_quantize(phase.fake_quantize)
        model.observe(phase.observe)
        model.freeze_batch_norms(phase.freeze_batch_norms)
        return phase

    def step(self) -> None:
        """One more step is done."""
        self.done += 1

    def learning_rate(self, original: float) -> float:
        """For the present step: from a hundredth of the original training's rate, falling to 0 by a
        half cosine.

        Args:
            original: the highest rate of the original training.
        """
        share = min(1.0, self.done / self.steps)
        return original * SHARE_OF_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * share))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"steps": self.steps, "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            TrainingError: it is of a schedule of another length.
        """
        if state["steps"] != self.steps:
            raise TrainingError(
                f"the checkpoint is of a training of {state['steps']} steps, this one has "
                f"{self.steps}: make the schedule with steps={state['steps']}"
            )
        self.done = int(state["done"])


@dataclass(frozen=True)
class Phase:
    """What holds at a step: whether values are rounded, ranges follow, batch norms are frozen.

    Attributes:
        fake_quantize: whether values are rounded.
        observe: whether ranges follow the training.
        freeze_batch_norms: whether batch norms use their running statistics.

    Example:
        >>> Schedule(steps=4).phase(3).freeze_batch_norms
        True
    """

    fake_quantize: bool
    observe: bool
    freeze_batch_norms: bool


_SHARES = ("fake_quantize_from", "observe_until", "freeze_batch_norms_from")
