"""Architectures of timm, as different from each other as possible."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import Entry, images

# name -> size of the images, what create_model takes
_NAMES: dict[str, tuple[int, dict[str, Any]]] = {
    **dict.fromkeys(
        """
        ghostnet_100 hrnet_w18_small resnest14d ese_vovnet19b_dw repvgg_a0 eca_nfnet_l0
        mobilenetv4_conv_small fastvit_t8 poolformer_s12 convnextv2_atto mobilevit_xxs
        xcit_nano_12_p16_224 focalnet_tiny_srf pvt_v2_b0 edgenext_xx_small efficientvit_b0
        mobilenetv1_100 efficientnet_lite0
        """.split(),
        (64, {}),
    ),
    "mixer_s32_224": (96, {"img_size": 96}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "levit_128s": (224, {}),
    "deit_tiny_patch16_224": (64, {"img_size": 64}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64}),
    "sequencer2d_s": (64, {"img_size": 64, "layers": [1, 1, 2, 1]}),
    "botnet26t_256": (256, {}),
    "crossvit_tiny_240": (240, {}),
    "hiera_tiny_224": (224, {}),
}


def _entry(name: str, size: int, options: dict[str, Any]) -> Entry:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return Entry(name, "timm", make, images(size))


ENTRIES = tuple(_entry(name, size, options) for name, (size, options) in _NAMES.items())
