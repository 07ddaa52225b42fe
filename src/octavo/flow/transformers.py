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

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from octavo.errors import ArtifactError, MissingExtra, PlanError
from octavo.flow.modules import quantize_modules
from octavo.flow.settings import Settings
from octavo.graph.operators import dtype_of
from octavo.model.nn import QuantizedModule, from_description
from octavo.quantization.qconfig import mapping_of
from octavo.quantization.targets import dynamic_qconfig, weight_only_qconfig

try:
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "quantize in from_pretrained") from error

_METHOD = "octavo"


@register_quantization_config(_METHOD)
class OctavoConfig(QuantizationConfigMixin):
    """How ``from_pretrained`` quantizes, layer by layer, without data.

    The head, layers with tied weights, and what is named stay float.

    Args:
        mode: ``"weight_only"`` or ``"dynamic"``.
        bits: of weights, 8 or (weight-only) 4.
        group_size: so many weights of a row share a scale; ``None`` for one a row.
        modules_to_not_convert: paths of modules that stay float.
        modules: what was quantized, as ``save_pretrained`` writes it.

    Raises:
        PlanError: there is no such mode or option, or dynamic layers with other than 8 bits are
            asked for.
    """

    quant_method: Any  # transformers' own are of an enumeration

    def __init__(
        self,
        mode: str = "weight_only",
        bits: int = 8,
        group_size: int | None = None,
        modules_to_not_convert: list[str] | None = None,
        modules: Mapping[str, Any] | None = None,
        quant_method: str = _METHOD,
        **others: Any,
    ) -> None:
        if others:
            raise PlanError(
                f"OctavoConfig has no option {', '.join(map(repr, others))}: mode, bits, "
                "group_size and modules_to_not_convert are what it takes"
            )
        if mode not in ("weight_only", "dynamic"):
            raise PlanError(f"mode={mode!r} needs data or is unknown: weight_only or dynamic")
        if mode == "dynamic" and (bits, group_size) != (8, None):
            raise PlanError("dynamic layers have weights of 8 bits without groups: leave bits out")
        self.quant_method = _METHOD
        self.mode, self.bits, self.group_size = mode, bits, group_size
        self.modules_to_not_convert = modules_to_not_convert
        self.modules = dict(modules or {})


@register_quantizer(_METHOD)
class OctavoQuantizer(HfQuantizer):
    """What transformers calls around the loading of weights."""

    quantization_config: OctavoConfig

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        """Put the tensors of a quantized layer, without values yet, in the place of a float one."""
        for path, part in self.quantization_config.modules.items() if self.pre_quantized else ():
            try:
                model.set_submodule(path, _without_values(part["tensors"]), strict=True)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"the quantization_config of {path!r} does not fit the model: {error}"
                ) from None

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> None:
        if self.pre_quantized:
            for path, part in self.quantization_config.modules.items():
                tensors = dict(model.get_submodule(path).named_buffers())
                module = from_description(part["description"], tensors)
                model.set_submodule(path, module.eval(), strict=True)
        else:
            self._quantize(model)

    def _quantize(self, model: Any) -> None:
        config = self.quantization_config
        stays = self.get_modules_to_not_convert(
            model, config.modules_to_not_convert, add_default_skips=True
        )

        def wanted(path: str, module: nn.Module) -> bool:
            return not any(f"{path}.".startswith(f"{name}.") for name in stays) and not list(
                module.children()
            )

        qconfig = dynamic_qconfig()
        if config.mode == "weight_only":
            qconfig = weight_only_qconfig(config.bits, group_size=config.group_size)
        quantized = quantize_modules(
            model, Settings(mode=config.mode, mapping=mapping_of(qconfig), only=wanted)
        )
        for path, module in list(quantized.named_modules()):
            if isinstance(module, QuantizedModule):
                model.set_submodule(path, module, strict=True)
                kinds = {
                    name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                    for name, tensor in module.tensors().items()
                }
                config.modules[path] = {"description": module.describe(), "tensors": kinds}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _without_values(kinds: Mapping[str, Any]) -> nn.Module:
    """A module of tensors that are to be loaded."""
    module = nn.Module()
    for name, (dtype, shape) in kinds.items():
        tensor = torch.empty(shape, dtype=dtype_of(dtype), device="meta")
        module.register_buffer(name, tensor)
    return module
