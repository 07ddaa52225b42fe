"""The peer: ``torch.ao.quantization``, deprecated and still what the articles teach."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Engine, which is also the name of its qconfig mapping -> the CPUs that its mapping suits: that of
# x86 has seven bits for all activations, so that nothing saturates on a CPU without VNNI.
FX_CPUS = {"onednn": "VNNI", "x86": "AVX2"}


def fx(
    model: nn.Module, calibration: Iterable[Tensor], engine: str, *, reference: bool = False
) -> nn.Module:
    """Quantize with an engine's default qconfig mapping.

    Args:
        model: in evaluation mode; it is left as it was.
        calibration: one batch or more.
        engine: ``"onednn"`` or ``"x86"``; it stays set as torch's quantized engine.
        reference: float arithmetic between quantize and dequantize, exact on any CPU, in place of
            the engine's kernels.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

        torch.backends.quantized.engine = engine
        batches = list(calibration)
        prepared = quantize_fx.prepare_fx(
            copy.deepcopy(model), get_default_qconfig_mapping(engine), (batches[0],)
        )
        for batch in batches:
            prepared(batch)
        finish = quantize_fx.convert_to_reference_fx if reference else quantize_fx.convert_fx
        return finish(prepared).eval()


def dynamic(model: nn.Module) -> nn.Module:
    """``torch.ao.quantization.quantize_dynamic``: linear and recurrent layers, int8 weights.

    On the engine that torch chooses for x86, whose activations have seven bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        torch.backends.quantized.engine = "x86"
        return quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTM}, torch.qint8)
