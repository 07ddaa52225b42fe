"""A Lightning callback that follows a `Schedule`. Needs the extra ``lightning``.

Tested in tests/qat/test_trainers.py.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import optional_import
from octavo.qat.model import models_in
from octavo.qat.schedule import Schedule

with optional_import("lightning", "lightning", "train in Lightning's Trainer"):
    from lightning.pytorch import Callback, LightningModule, Trainer


class QATCallback(Callback):
    """Puts every `QATModel` in the module into the phase of the trainer's global step.

    Args:
        schedule: in steps of the trainer.

    Example:
        >>> trainer = Trainer(callbacks=[QATCallback(Schedule(steps=1000))], logger=False)
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.schedule.done = trainer.global_step
        for model in models_in(pl_module):
            self.schedule.start(model)
