"""Quantization by ``from_pretrained`` of transformers, and ``save_pretrained``. Needs the extra
``transformers``.

>>> from octavo.flow.transformers import OctavoConfig                  # doctest: +SKIP
>>> config = OctavoConfig(mode="weight_only", bits=4, group_size=32)  # doctest: +SKIP
>>> q = AutoModelForCausalLM.from_pretrained(path, quantization_config=config)  # doctest: +SKIP
>>> q.save_pretrained(folder)                                         # doctest: +SKIP
>>> q = AutoModelForCausalLM.from_pretrained(folder)                  # doctest: +SKIP

Importing this module registers it with transformers, which a process that loads such a folder has
to do as well. The folder holds integers and scales, and no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from octavo.errors import MissingExtra
from octavo.flow.modules import quantize_modules
from octavo.flow.settings import Settings
from octavo.model.language.stored_layers import quantized_layers
from octavo.quantization.qconfig import is_inside, mapping_of
from octavo.quantization.targets import dynamic_qconfig, weight_only_qconfig

try:
    from octavo.model.language.pretrained import OctavoConfig, OctavoQuantizer
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "quantize in from_pretrained") from error

__all__ = ["OctavoConfig"]


def _quantize(model: Any, config: OctavoConfig, stays: Sequence[str]) -> None:
    """Layers of a model become integers in place, all but what stays."""

    def wanted(path: str, module: nn.Module) -> bool:
        return not any(is_inside(path, name) for name in stays)

    qconfig = dynamic_qconfig()
    if config.mode == "weight_only":
        qconfig = weight_only_qconfig(config.bits or 8, group_size=config.group_size)
    quantized = quantize_modules(
        model, Settings(mode=config.mode, mapping=mapping_of(qconfig), only=wanted)
    )
    for path, module in quantized_layers(quantized):
        model.set_submodule(path, module, strict=True)


OctavoQuantizer.quantize = staticmethod(_quantize)
