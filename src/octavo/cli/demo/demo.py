"""The demo: train a small network on real digits, quantize it, and see what that did.

The network is two Conv-BatchNorm-ReLU-pool blocks and two linear layers on 28x28 images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.cli.demo.digits import Batches, Digits, Loaders, load_digits
from octavo.cli.demo.phones import TARGET, phone_files, with_their_sizes
from octavo.display import finite
from octavo.errors import ArtifactError, InputError
from octavo.flow.quantize import quantize
from octavo.measuring.comparison import compare
from octavo.measuring.comparison_table import Comparison
from octavo.model.files.atomic import replacing, require_writable
from octavo.model.model import QuantizedModel
from octavo.model.replay import Replay, replay_in_fresh_process
from octavo.progress import track
from octavo.reporting import report
from octavo.reporting.html import require_packages
from octavo.reporting.plots import History, training
from octavo.reporting.plots.figure import save_png
from octavo.runtimes.cpu import host_target

BATCH_SIZE = 64
# Both end well above 97 % within the three minutes that the demo may take on two slow cores.
DEFAULT_EPOCHS = {"scikit-learn": 8, "MNIST": 1}
LEARNING_RATE = 2e-3

Say = Callable[[str], object]


def silent(line: str) -> None:
    """Says nothing."""


class Net(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and pooling, then two linear layers.

    float32 ``[N, 1, 28, 28]`` -> class scores ``[N, 10]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, stride=1, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=1, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu2 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(7 * 7 * 64, 512)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu1(self.bn1(self.conv1(x))))
        x = self.maxpool(self.relu2(self.bn2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)
        x = self.relu3(self.fc1(x))
        scores: Tensor = self.fc2(x)
        return scores


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: the table, the replay in a fresh process, and where the files lie."""

    data: str
    epochs: int
    seconds: float
    target: str
    comparison: Comparison
    replay: Replay
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The comparison, and how it came about under ``"demo"``; JSON-able."""
        about = {
            "data": self.data,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 1),
            "target": self.target,
            "fresh_process": asdict(self.replay),
        }
        return self.comparison.to_dict() | {"demo": about}


def trained_net(
    mnist: str | Path | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Net, Loaders]:
    """The demo's network, trained, and the batches: `Loaders` of train, calibration and test.

    Args:
        mnist: a folder with MNIST's files; ``None`` takes scikit-learn's digits.
        epochs: ``None`` is 8 for scikit-learn's digits and 1 for MNIST.
        seed: of the initial weights, the order of the images and the augmentation.
        progress: a bar in terminals and notebooks, lines in logs.

    Raises:
        MissingExtra, InputError: see `load_digits`.
    """
    digits = load_digits(mnist)
    net, loaders, _ = _trained(digits, _epochs(digits, epochs), seed, progress, silent)
    return net, loaders


def run_demo(
    out: str | Path,
    *,
    mnist: str | Path | None = None,
    epochs: int | None = None,
    target: str | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Say = silent,
) -> DemoResult:
    """Train, quantize, compare, and check the file in a fresh process.

    Writes ``model.octavo``, ``comparison.json``, ``report.html`` and ``training.png`` into
    ``out``, and for phones ``model.tflite`` and ``model.pte`` where LiteRT and ExecuTorch are
    installed.

    Args:
        out: a folder, made where it is missing.
        mnist, epochs, seed: as in `trained_net`.
        target: what the file shall run on; ``None`` is the CPU that the demo runs on.
        progress: bars in terminals and notebooks, lines in logs.
        say: is told, line by line, what happens.

    Raises:
        MissingExtra: scikit-learn, matplotlib or jinja2 is not installed.
        ArtifactError: a file cannot be written, or answers differently in a fresh process.
    """
    started = time.perf_counter()
    folder = Path(out)
    require_packages()
    digits = load_digits(mnist)
    epochs = _epochs(digits, epochs)
    require_writable(folder)  # known before the training, not after it
    say(f"data: {digits.name}: {len(digits.train)} for training, {len(digits.test)} for test")
    net, loaders, history = _trained(digits, epochs, seed, progress, say)
    title = f"The demo's network on {digits.name}"
    curves = training(history, title)
    save_png(curves, folder / "training.png")

    chosen = target or host_target()
    say(f"target: {chosen} " + ("(as asked)" if target else "(this CPU; --target takes another)"))

    def quantized(target: str) -> QuantizedModel:
        return quantize(
            net, calibration=loaders.calibration, target=target, progress=progress, scope="model"
        )

    q = quantized(chosen)
    q.save(str(folder / "model.octavo"))
    files = phone_files(lambda: quantized(TARGET), folder, say)
    comparison = compare(net, {"int8": q, **files}, loaders.test, progress=progress)
    comparison = with_their_sizes(comparison, files)
    page = report(
        net, q, loaders.test, title=title, comparison=comparison, batches=2, progress=progress
    )
    page.to_html(folder / "report.html")

    images = torch.cat([batch[0] for batch in loaders.test])
    with torch.no_grad():
        again = replay_in_fresh_process(folder / "model.octavo", images, q(images))
    result = DemoResult(
        digits.name, epochs, time.perf_counter() - started, chosen, comparison, again, folder
    )
    with replacing(folder / "comparison.json") as file:
        file.write_text(json.dumps(finite(result.to_dict()), indent=2, allow_nan=False) + "\n")
    if again.different_predictions:
        raise ArtifactError(
            f"{folder / 'model.octavo'} predicts {again.different_predictions} of {again.samples} "
            "images differently in a fresh process; please report this with comparison.json"
        )
    return result


def train(
    net: nn.Module,
    loaders: Loaders,
    epochs: int,
    *,
    seed: int = 0,
    progress: bool = False,
    say: Say = silent,
) -> History:
    """Train in place with AdamW, a one-cycle learning rate and augmentation; ends in eval mode."""
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    steps = epochs * len(loaders.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    history = History()
    for epoch in range(1, epochs + 1):
        net.train()
        training = _Sums()
        for images, labels in track(loaders.train, f"epoch {epoch}/{epochs}", progress):
            scores = net(augmented(images, chance))
            optimizer.zero_grad()
            functional.cross_entropy(scores, labels).backward()
            optimizer.step()
            schedule.step()
            training.add(scores.detach(), labels)
        validation = _evaluate(net, loaders.test)
        history.train_accuracy.append(training.accuracy)
        history.train_loss.append(training.loss)
        history.validation_accuracy.append(validation.accuracy)
        history.validation_loss.append(validation.loss)
        say(f"epoch {epoch:2}/{epochs}: training {training}; validation {validation}")
    net.eval()
    return history


def augmented(images: Tensor, chance: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to 10 % and moved by up to 2 pixels."""
    count = len(images)

    def between(limit: float) -> Tensor:
        return limit * (2 * torch.rand(count, generator=chance) - 1)

    angle, scale = between(torch.pi / 18), 1 + between(0.1)
    move = 2 * 2 / images.shape[-1]  # two pixels, where the image goes from -1 to 1
    rows = (
        torch.stack([scale * angle.cos(), -scale * angle.sin(), between(move)], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), between(move)], dim=1),
    )
    shape = list(images.shape)
    grid = functional.affine_grid(torch.stack(rows, dim=1), shape, align_corners=False)
    # What moves in from outside is 0 to grid_sample; the background is -1.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


class _Sums:
    """Loss and right answers over the batches seen so far."""

    def __init__(self) -> None:
        self._loss, self._right, self._count = 0.0, 0, 0

    def add(self, scores: Tensor, labels: Tensor) -> None:
        self._loss += float(functional.cross_entropy(scores, labels, reduction="sum"))
        self._right += int((scores.argmax(1) == labels).sum())
        self._count += len(labels)

    @property
    def loss(self) -> float:
        return self._loss / self._count

    @property
    def accuracy(self) -> float:
        return 100.0 * self._right / self._count

    def __str__(self) -> str:
        return f"{self.accuracy:6.2f} %, loss {self.loss:.4f}"


def _evaluate(net: nn.Module, batches: Batches) -> _Sums:
    net.eval()
    sums = _Sums()
    with torch.no_grad():
        for images, labels in batches:
            sums.add(net(images), labels)
    return sums


def _epochs(digits: Digits, epochs: int | None) -> int:
    if epochs is None:
        return DEFAULT_EPOCHS["MNIST" if digits.name == "MNIST" else "scikit-learn"]
    if epochs < 1:
        raise InputError(f"epochs={epochs}: at least 1 epoch is needed")
    return epochs


def _trained(
    digits: Digits, epochs: int, seed: int, progress: bool, say: Say
) -> tuple[Net, Loaders, History]:
    loaders = digits.loaders(BATCH_SIZE, seed)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the caller's
        torch.manual_seed(seed)
        net = Net()
    return net, loaders, train(net, loaders, epochs, seed=seed, progress=progress, say=say)
