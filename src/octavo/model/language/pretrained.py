"""Quantized models of transformers: what ``save_pretrained`` writes of them, and
``from_pretrained`` reads. Importing this module registers it with transformers.

The folder holds integers and scales, and no code. Tested in tests/flow/test_transformers.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from octavo.errors import ArtifactError, InputError, PlanError
from octavo.model.language.decoding import with_native_steps
from octavo.model.language.shards import check_shard
from octavo.model.language.stored_layers import described, stored, with_values, without_values
from octavo.model.parts import parts_of, regions_of
from octavo.quantization.qconfig import is_inside

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


def _not_known(model: Any, config: OctavoConfig, stays: Sequence[str]) -> None:
    raise InputError(
        "import octavo.flow.transformers before from_pretrained quantizes: it knows how"
    )


@register_quantizer(_METHOD)
class OctavoQuantizer(HfQuantizer):
    """What transformers calls around the loading of weights."""

    quantization_config: OctavoConfig
    # A float model and how -> its layers are integers; `octavo.flow.transformers` knows.
    quantize: ClassVar[Callable[[Any, OctavoConfig, Sequence[str]], None]] = staticmethod(
        _not_known
    )
    # Path of a part of the model that is a graph.
    captured: str | None = None

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
            stays = self.get_modules_to_not_convert(
                model, self.quantization_config.modules_to_not_convert, add_default_skips=True
            )
            type(self).quantize(model, self.quantization_config, stays)
            self.quantization_config.modules = described(model)
        model._weight_conversions = []  # to be saved under the names that it has
        with_native_steps(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """What ``save_pretrained`` writes."""
        paths = self.quantization_config.modules
        state = {
            name: stored(tensor) if any(is_inside(name, path) for path in paths) else tensor
            for name, tensor in model.state_dict().items()
        }
        return state, {}

    def is_serializable(self) -> bool:
        """Asked by ``save_pretrained`` before it makes a folder.

        Raises:
            InputError: a part of the model is a graph, which its folders have no form for.
        """
        if self.captured is not None:
            raise InputError(
                f"save_pretrained has no form for captured parts ({self.captured!r}): "
                "octavo.save(q, path) writes them, and octavo.load(path, into=model) reads them"
            )
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def tell(model: nn.Module) -> None:
    """Let ``save_pretrained`` of the models in a model, or of itself, write what is quantized."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module not in inside and parts_of(module):
            inside |= set(module.modules())
            layers = described(module)
            rounds = any(layer["description"].get("activation") for layer in layers.values())
            config = OctavoConfig("dynamic" if rounds else "weight_only", None, modules=layers)
            own: Any = module  # torch's stubs take all attributes for tensors
            own.config = copy.copy(own.config)  # the float model has the same one
            own.config.quantization_config, own.hf_quantizer = config, OctavoQuantizer(config)
            own.hf_quantizer.captured = next(iter(regions_of(module)), None)
