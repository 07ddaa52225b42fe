"""Architectures of timm, as different from each other as possible."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import Entry, images

# name -> size of the images, what create_model takes
_NAMES: dict[str, tuple[int, dict[str, Any]]] = {
    "ghostnet_100": (64, {}),
    "hrnet_w18_small": (64, {}),
    "resnest14d": (64, {}),
    "ese_vovnet19b_dw": (64, {}),
    "repvgg_a0": (64, {}),
    "eca_nfnet_l0": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "fastvit_t8": (64, {}),
    "mixer_s32_224": (96, {"img_size": 96}),
    "poolformer_s12": (64, {}),
    "convnextv2_atto": (64, {}),
    "mobilevit_xxs": (64, {}),
    "levit_128s": (224, {}),
    "xcit_nano_12_p16_224": (64, {}),
    "deit_tiny_patch16_224": (64, {"img_size": 64}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64}),
    "sequencer2d_s": (64, {"img_size": 64, "layers": [1, 1, 2, 1]}),
    "botnet26t_256": (256, {}),
    "focalnet_tiny_srf": (64, {}),
    "crossvit_tiny_240": (240, {}),
    "hiera_tiny_224": (224, {}),
}


def _entry(name: str, size: int, options: dict[str, Any]) -> Entry:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return Entry(name, "timm", make, images(size))


ENTRIES = tuple(_entry(name, size, options) for name, (size, options) in _NAMES.items())
