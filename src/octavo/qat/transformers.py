"""A callback for the Trainer of transformers that follows a `Schedule`. Needs the extra
``transformers``.

Tested in tests/qat/test_trainers.py.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import optional_import
from octavo.qat.model import models_in
from octavo.qat.schedule import Schedule

with optional_import("transformers", "transformers", "train in its Trainer"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class QATCallback(TrainerCallback):
    """Puts every `QATModel` in the trained module into the phase of the trainer's global step.

    A `QATModel` may be what the Trainer trains, with ``remove_unused_columns=False`` among its
    arguments, or be inside of it.

    Args:
        schedule: in steps of the trainer.

    Example:
        >>> callback = QATCallback(Schedule(steps=1000))  # Trainer(qat, callbacks=[callback])
        >>> callback.schedule.steps
        1000
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,
    ) -> None:
        self.schedule.done = state.global_step
        for model in models_in(more["model"]):
            self.schedule.start(model)
