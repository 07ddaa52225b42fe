"""torchvision's networks, on small images where the architecture allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.entry import Call, Entry, images

# name -> what its function takes; all take images of 64 by 64
_NAMES: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "vgg11_bn": {},
    "resnet18": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "densenet121": {},
    "googlenet": {"init_weights": False, "aux_logits": False},
    "mnasnet0_5": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "vit_b_32": {"image_size": 64},
    "swin_t": {},
    "segmentation.deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    "segmentation.lraspp_mobilenet_v3_large": {"weights_backbone": None},
    "segmentation.fcn_resnet50": {"weights_backbone": None},
}


# Windows or places of one number, and a map of one pixel, which torch.export fixes.
_OF_ONE_SIZE = ("vit_b_32", "swin_t", "alexnet", "squeezenet1_1")


def _network(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    *path, function = name.split(".")
    module = getattr(models, path[0]) if path else models
    network: nn.Module = getattr(module, function)(**options)
    return network


def _maxvit() -> nn.Module:
    """``maxvit_t`` with windows that fit into small images."""
    from torchvision.models import MaxVit

    return MaxVit(
        input_size=(64, 64),
        stem_channels=64,
        partition_size=2,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )


def _entry(name: str, options: dict[str, Any]) -> Entry:
    another = None if name in _OF_ONE_SIZE else images(96)
    make = lambda: _network(name, options)  # noqa: E731
    return Entry(name.split(".")[-1], "torchvision", make, images(64), another)


def _clips(batch: int) -> Call:
    return (torch.randn(batch, 3, 4, 32, 32),)


ENTRIES = (
    *(_entry(name, options) for name, options in _NAMES.items()),
    Entry("maxvit_t", "torchvision", _maxvit, images(64)),
    Entry("r3d_18", "torchvision", lambda: _network("video.r3d_18", {}), _clips),
)
