"""A schedule is followed by the callbacks of two trainers, in their own loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import octavo
from octavo.errors import TrainingError
from octavo.qat import Phase, QATModel, Schedule

STEPS = 8
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "fake_quantize_from": 0.25,
    "observe_until": 0.5,
    "freeze_batch_norms_from": 0.75,
}
EXPECTED = [Schedule(**SETTINGS).phase(step) for step in range(STEPS)]


class Recording(Schedule):
    """Remembers at which step each phase was started."""

    def start(self, model: QATModel) -> Phase:
        phase = super().start(model)
        self.__dict__.setdefault("phases", []).append((self.done, phase))
        return phase


def _prepared() -> QATModel:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return octavo.prepare_qat(net, torch.randn(2, 2, 6, 6))


def _data(count: int) -> TensorDataset:
    """A task that a few steps learn something of."""
    x = torch.randn(count, 2, 6, 6)
    return TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())


def _loss_on(qat: QATModel, data: TensorDataset) -> float:
    qat.eval()
    with torch.no_grad():
        loss = functional.cross_entropy(qat(data.tensors[0]), data.tensors[1])
    qat.train()
    return float(loss)


def _assert_trained(qat: QATModel, schedule: Schedule, data: TensorDataset) -> None:
    assert schedule.__dict__["phases"] == list(enumerate(EXPECTED))
    x = data.tensors[0]
    with torch.no_grad():
        expected = qat.eval()(x)
    q = octavo.convert(qat).lower("reference")
    assert sum(t.kind == "weight" for t in q.plan.quantized.values()) == 2
    torch.testing.assert_close(q(x), expected, atol=0.05, rtol=0.05)


def _lightning_module(lightning: Any) -> Any:
    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = _prepared()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            assert not self.net.training
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.01)

    return Module()


def _lightning_trainer(lightning: Any, schedule: Schedule, folder: Path, **options: Any) -> Any:
    from octavo.qat.lightning import QATCallback

    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[QATCallback(schedule)],
        **options,
    )


def test_lightning_follows_the_schedule(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    module, schedule, data = _lightning_module(lightning), Recording(**SETTINGS), _data(64)
    before = _loss_on(module.net, data)
    trainer = _lightning_trainer(lightning, schedule, tmp_path, max_epochs=2)
    loader = DataLoader(data, batch_size=16)
    # Four batches in each of two epochs. Lightning evaluates once before, by default.
    with pytest.warns(octavo.OctavoWarning, match="2 of 2 activations have no range yet"):
        trainer.fit(module, loader, loader)
    assert trainer.global_step == STEPS
    _assert_trained(module.net, schedule, data)
    assert _loss_on(module.net, data) < before
    with pytest.warns(octavo.OctavoWarning, match="holds as 'net'; what else its forward does"):
        q = octavo.convert(module)
    x = data[0][0][None]
    assert torch.equal(q(x), octavo.convert(module.net)(x))


def test_lightning_counts_steps_of_the_optimizer(tmp_path: Path) -> None:
    """With accumulated gradients two batches are one step, and share its phase."""
    lightning = pytest.importorskip("lightning.pytorch")
    schedule = Recording(**SETTINGS)
    trainer = _lightning_trainer(
        lightning, schedule, tmp_path, max_epochs=1, accumulate_grad_batches=2
    )
    trainer.fit(_lightning_module(lightning), DataLoader(_data(32), batch_size=4))
    twice = [(step, EXPECTED[step]) for step in range(4) for _ in range(2)]
    assert schedule.__dict__["phases"] == twice


class Scored(nn.Module):
    """A loss and scores of named arguments, as transformers' trainer wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _prepared()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.net(x)
        return {"loss": functional.cross_entropy(scores, labels), "scores": scores}


def test_transformers_follows_the_schedule(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from octavo.qat.transformers import QATCallback

    model, schedule, data = Scored(), Recording(**SETTINGS), _data(64)
    model.net(data.tensors[0])
    before = _loss_on(model.net, data)
    trainer = _trainer(transformers, model, QATCallback(schedule), data, tmp_path)
    trainer.train()
    assert trainer.state.global_step == STEPS
    _assert_trained(model.net, schedule, data)
    assert _loss_on(model.net, data) < before


def test_transformers_trains_a_prepared_model_itself(tmp_path: Path) -> None:
    """Whose ``forward`` names no arguments: the columns of a row have to be kept, and the trainer
    must not take it for one that is told how many items a batch has.
    """
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from octavo.qat.transformers import QATCallback

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(torch.relu(self.conv(x)).flatten(1))
            return result

    qat = octavo.prepare_qat(Net(), torch.randn(2, 2, 6, 6))
    schedule = Recording(**SETTINGS)
    trainer = _trainer(
        transformers,
        qat,
        QATCallback(schedule),
        _data(64),
        tmp_path,
        {"remove_unused_columns": False},
        compute_loss_func=lambda scores, labels, **_: functional.cross_entropy(scores, labels),
    )
    trainer.train()
    assert schedule.__dict__["phases"] == list(enumerate(EXPECTED))


def _trainer(
    transformers: Any,
    model: nn.Module,
    callback: Any,
    data: TensorDataset,
    where: Path,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(where),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **(settings or {}),
    )
    rows = [{"x": x, "labels": label} for x, label in data]
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback], **more)


def test_lightning_without_a_prepared_model(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from octavo.qat.lightning import QATCallback

    callback = QATCallback(Schedule(steps=2))
    with pytest.raises(TrainingError, match=r"LightningModule holds no model from octavo\.prep"):
        callback.on_train_batch_start(
            lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path),
            lightning.LightningModule(),
            None,
            0,
        )


def test_transformers_without_a_prepared_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from octavo.qat.transformers import QATCallback

    model = Scored()
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))  # type: ignore[assignment]
    callback = QATCallback(Schedule(steps=STEPS))
    trainer = _trainer(transformers, model, callback, _data(16), tmp_path)
    with pytest.raises(TrainingError, match=r"Scored holds no model from octavo\.prepare_qat"):
        trainer.train()
