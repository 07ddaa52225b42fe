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

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from octavo.errors import ArtifactError, MissingExtra, PlanError
from octavo.flow.modules import quantize_modules
from octavo.flow.settings import Settings
from octavo.model.language.decoding import with_native_steps
from octavo.model.language.shards import check_shard
from octavo.model.language.stored_layers import (
    described,
    quantized_layers,
    with_values,
    without_values,
)
from octavo.quantization.qconfig import is_inside, mapping_of
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
        bits: of weights, 8 or (weight-only) 4; of a saved model whose layers differ ``None``.
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
        bits: int | None = 8,
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
        if mode == "dynamic" and (bits, group_size) not in ((8, None), (None, None)):
            raise PlanError("dynamic layers have weights of 8 bits without groups: leave bits out")
        self.quant_method = _METHOD
        self.mode, self.bits, self.group_size = mode, bits, group_size
        self.modules_to_not_convert = modules_to_not_convert
        self.modules = dict(modules or {})


@register_quantizer(_METHOD)
class OctavoQuantizer(HfQuantizer):
    """What transformers calls around the loading of weights."""

    quantization_config: OctavoConfig

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **options: Any
    ) -> None:
        """Put the tensors of a quantized layer, without values yet, in the place of a float one."""
        if not self.pre_quantized:
            return
        for file in checkpoint_files or ():
            check_shard(file)
        for path, part in self.quantization_config.modules.items():
            try:
                model.set_submodule(path, without_values(part), strict=True)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"the quantization_config of {path!r} does not fit the model: {error}"
                ) from None
        ties = model.all_tied_weights_keys
        for names in list(ties.items()):
            if any(is_inside(n, path) for n in names for path in self.quantization_config.modules):
                del ties[names[0]]  # of integers: `with_values` ties them

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> None:
        if self.pre_quantized:
            with_values(model, self.quantization_config.modules)
        else:
            self._quantize(model)
        model._weight_conversions = []  # to be saved under the names that it has
        with_native_steps(model)

    def _quantize(self, model: Any) -> None:
        config = self.quantization_config
        stays = self.get_modules_to_not_convert(
            model, config.modules_to_not_convert, add_default_skips=True
        )

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
        config.modules = described(model)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
