"""What the runtimes are measured on: networks, one batch for each call, and calibration batches.

The batches for calibration are as large as those of the calls, since some peers want one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from benchmarks import minilm, nets, ocr, unet
from benchmarks.docstrings import docstrings
from benchmarks.recurrent import Recurrent
from octavo.cli.demo.demo import Net

Batch = tuple[Tensor, ...]

STEPS, INPUTS, WIDTH = 64, 256, 512  # of the LSTM and GRU
SIDE = 256  # of the images that are segmented
TOKENS = 128
TEXTS = 64  # from which the one of 128 tokens is taken


@dataclass(frozen=True)
class Workload:
    """A network in evaluation mode, the arguments of a call, and those of the calibration."""

    net: nn.Module
    args: Batch
    calibration: list[Batch]

    def shown(self) -> list[Tensor]:
        """Every tensor that the network is shown before it is timed."""
        return [*self.args, *(t for batch in self.calibration for t in batch)]


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
        title: in tables.
    """

    make: Callable[[int], Workload]
    recipe: Recipe
    modes: tuple[str, ...] = ("static",)
    speedup: float | None = None
    title: str = ""


def _photos(batch: int, samples: int) -> tuple[Batch, list[Batch]]:
    batches = range(1, 1 + max(1, samples // batch))
    return (nets.photos(batch, seed=0),), [(nets.photos(batch, seed=seed),) for seed in batches]


def _torchvision(name: str, batch: int = 1) -> Callable[[int], Workload]:
    return lambda samples: Workload(nets.net_for_images(name), *_photos(batch, samples))


def _vit(samples: int) -> Workload:
    def made() -> nn.Module:
        net: nn.Module = torchvision_models.vit_b_16()
        # Untrained, the head is 0, and so is every answer.
        nn.init.normal_(net.get_parameter("heads.head.weight"), std=0.02)
        return net

    return Workload(nets.seeded(made).eval(), *_photos(1, samples))


def _swin(samples: int) -> Workload:
    net = nets.seeded(torchvision_models.swin_t).eval()
    return Workload(net, *_photos(1, samples))


def _unet(samples: int) -> Workload:
    net = nets.with_statistics(nets.seeded(unet.UNet), nets.photos(4, SIDE, seed=100))
    first, *others = ((nets.photos(1, SIDE, seed=seed),) for seed in range(1 + samples))
    return Workload(net, first, others)


def _ocr(samples: int) -> Workload:
    lines = ocr.lines(16 + 1 + samples)
    net = nets.with_statistics(nets.seeded(ocr.Reader), lines[:16])
    return Workload(net, (lines[16:17],), [(x,) for x in lines[17:].split(1)])


def _bert(samples: int) -> Workload:
    net = nets.seeded(minilm.bert_base).eval()
    chance = torch.Generator().manual_seed(nets.SEED)
    ids = torch.randint(1000, 30000, (1 + samples, TOKENS), generator=chance)
    texts = [(one, torch.ones_like(one)) for one in ids.split(1)]
    return Workload(net, texts[0], texts[1:])


def _minilm(samples: int) -> Workload:
    net, tokenizer = minilm.encoder()
    # A third of the texts is that long.
    every = docstrings(TEXTS + max(TEXTS, 8 * samples))
    texts = minilm.tokenized(every[:TEXTS], tokenizer, every[TEXTS:])
    return Workload(net, texts.longest, [*texts.calibration[minilm.LENGTHS[-1]][:samples]])


def _recurrent(kind: type[nn.RNNBase], samples: int) -> Workload:
    net = nets.seeded(lambda: Recurrent(INPUTS, WIDTH, 2, kind)).eval()
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


def _images(name: str, title: str, speedup: float | None = None, batch: int = 1) -> Model:
    """A network of torchvision's, with so many images in a call."""
    called = title if batch == 1 else f"{title}, batch {batch}"
    return Model(_torchvision(name, batch), CNN, speedup=speedup, title=called)


BOTH, DYNAMIC_FIRST = ("static", "dynamic"), ("dynamic", "static")
# In the order in which they are measured: who has little time sees the most different ones first.
MODELS: dict[str, Model] = {
    "resnet18": _images("resnet18", "ResNet-18", 14),
    "mobilenet_v2": _images("mobilenet_v2", "MobileNetV2", 6),
    "minilm": Model(_minilm, ENCODER, BOTH, speedup=4.5, title="MiniLM, 128 tokens"),
    "lstm": Model(
        partial(_recurrent, nn.LSTM), RECURRENT, DYNAMIC_FIRST, 3, "LSTM 2x512, 64 steps"
    ),
    "vit_b_16": Model(_vit, VISION_TRANSFORMER, speedup=6, title="ViT-B/16"),
    "resnet50": _images("resnet50", "ResNet-50", 8),
    "efficientnet_b0": _images("efficientnet_b0", "EfficientNet-B0"),
    "mobilenet_v3_large": _images("mobilenet_v3_large", "MobileNetV3-large"),
    "bert": Model(_bert, ENCODER, BOTH, title="BERT-base, 128 tokens"),
    "gru": Model(
        partial(_recurrent, nn.GRU), RECURRENT, DYNAMIC_FIRST, title="GRU 2x512, 64 steps"
    ),
    "swin_t": Model(_swin, VISION_TRANSFORMER, title="Swin-T"),
    "unet": Model(_unet, CNN, title="U-Net, 256x256"),
    "ocr": Model(_ocr, CNN, title="text line reader, 320x64"),
    "demo": Model(_demo, CNN, title="the demo's network"),
    "resnet18-batch16": _images("resnet18", "ResNet-18", 14, 16),
    "mobilenet_v2-batch16": _images("mobilenet_v2", "MobileNetV2", 6, 16),
    "resnet50-batch16": _images("resnet50", "ResNet-50", 8, 16),
    "efficientnet_b0-batch16": _images("efficientnet_b0", "EfficientNet-B0", batch=16),
    "mobilenet_v3_large-batch16": _images("mobilenet_v3_large", "MobileNetV3-large", batch=16),
}
