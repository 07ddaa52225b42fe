"""What the runtimes are measured on: networks, one batch for each call, and calibration batches.

The batches for calibration are as large as those of the calls, since some peers want one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import minilm, nets
from benchmarks.docstrings import docstrings
from benchmarks.recurrent import Recurrent
from octavo.cli.demo.demo import Net

# Behind `nets`, which lets torchvision be imported.
from torchvision.models import vit_b_16  # isort: skip

Batch = tuple[Tensor, ...]

STEPS, INPUTS, WIDTH = 64, 256, 512  # of the LSTM
TEXTS = 64  # from which the one of 128 tokens is taken


@dataclass(frozen=True)
class Workload:
    """A network in evaluation mode, the arguments of a call, and those of the calibration."""

    net: nn.Module
    args: Batch
    calibration: list[Batch]


@dataclass(frozen=True)
class Recipe:
    """How the peers' own guides quantize a network of this sort.

    Attributes:
        torch_ao: ``"FX"`` or ``"dynamic"``.
        onnxruntime: ``"static"`` or ``"dynamic"``.
        transformer: whether NNCF is told that it is one.
    """

    torch_ao: str
    onnxruntime: str
    transformer: bool


CNN = Recipe("FX", "static", transformer=False)
VISION_TRANSFORMER = Recipe("dynamic", "static", transformer=True)
ENCODER = Recipe("dynamic", "dynamic", transformer=True)
RECURRENT = Recipe("dynamic", "dynamic", transformer=False)


@dataclass(frozen=True)
class Model:
    """One of the models.

    Attributes:
        make: from the number of samples to calibrate with.
        recipe: the peers'.
        modes: Octavo's; the first is the one that its goals against peers are about.
        speedup: how many times faster than float torch Octavo's fastest runtime has to be.
    """

    make: Callable[[int], Workload]
    recipe: Recipe
    modes: tuple[str, ...] = ("static",)
    speedup: float | None = None


def _photos(batch: int, samples: int) -> tuple[Batch, list[Batch]]:
    batches = range(1, 1 + max(1, samples // batch))
    return (nets.photos(batch, seed=0),), [(nets.photos(batch, seed=seed),) for seed in batches]


def _torchvision(name: str, batch: int = 1) -> Callable[[int], Workload]:
    return lambda samples: Workload(nets.net_for_images(name), *_photos(batch, samples))


def _vit(samples: int) -> Workload:
    def made() -> nn.Module:
        net: nn.Module = vit_b_16()
        # Untrained, the head is 0, and so is every answer.
        nn.init.normal_(net.get_parameter("heads.head.weight"), std=0.02)
        return net

    return Workload(nets.seeded(made).eval(), *_photos(1, samples))


def _minilm(samples: int) -> Workload:
    net, tokenizer = minilm.encoder()
    # A third of the texts is that long.
    every = docstrings(TEXTS + max(TEXTS, 8 * samples))
    texts = minilm.tokenized(every[:TEXTS], tokenizer, every[TEXTS:])
    return Workload(net, texts.longest, [*texts.calibration[minilm.LENGTHS[-1]][:samples]])


def _lstm(samples: int) -> Workload:
    net = nets.seeded(lambda: Recurrent(INPUTS, WIDTH, 2)).eval()
    chance = torch.Generator().manual_seed(nets.SEED)
    every = torch.randn(1 + samples, STEPS, INPUTS, generator=chance).split(1)
    return Workload(net, (every[0],), [(x,) for x in every[1:]])


def _demo(samples: int) -> Workload:
    net = nets.seeded(Net).train()
    chance = torch.Generator().manual_seed(nets.SEED)
    digits = torch.rand(64 + 1 + samples, 1, 28, 28, generator=chance)
    with torch.no_grad():
        for _ in range(20):  # batch statistics of its own, see `nets.net_for_images`
            net(digits[:64])
    return Workload(net.eval(), (digits[64:65],), [(x,) for x in digits[65:].split(1)])


MODELS: dict[str, Model] = {
    "resnet18": Model(_torchvision("resnet18"), CNN, speedup=14),
    "resnet50": Model(_torchvision("resnet50"), CNN, speedup=8),
    "resnet50-batch16": Model(_torchvision("resnet50", 16), CNN, speedup=8),
    "mobilenet_v2": Model(_torchvision("mobilenet_v2"), CNN, speedup=6),
    "vit_b_16": Model(_vit, VISION_TRANSFORMER, speedup=6),
    "minilm": Model(_minilm, ENCODER, ("static", "dynamic"), speedup=4.5),
    "lstm": Model(_lstm, RECURRENT, ("dynamic", "static"), speedup=3),
    "demo": Model(_demo, CNN),
}
