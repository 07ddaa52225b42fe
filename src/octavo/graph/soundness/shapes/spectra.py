"""The shape of a spectrogram.

Tested in tests/graph/soundness/shapes/test_shapes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.graph.soundness.shapes.common import Rule, made, require

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def _stft(operator: Any, values: Mapping[str, Any]) -> Tensor:
    x, window, length = values["self"], values["window"], values["n_fft"]
    require(x.dim() in (1, 2) and x.dtype in _COMPLEX, f"a signal {list(x.shape)} of {x.dtype}")
    require(0 < length <= x.shape[-1], f"pieces of {length} in {x.shape[-1]} samples")
    hop = length // 4 if values["hop_length"] is None else values["hop_length"]
    within = length if values["win_length"] is None else values["win_length"]
    require(hop > 0 and 0 < within <= length, f"hops of {hop}, a window of {within}")
    if window is not None:
        fits = tuple(window.shape) == (within,) and window.dtype == x.dtype
        require(fits, f"a window of {list(window.shape)}")
    require(values["return_complex"] is True, "a spectrum as pairs of floats")
    require(not values["align_to_window"], "pieces that begin before the signal")
    one_sided = values["onesided"] in (None, True)
    frequencies = length // 2 + 1 if one_sided else length
    pieces = 1 + (x.shape[-1] - length) // hop
    return made([*x.shape[:-1], frequencies, pieces], _COMPLEX[x.dtype])


RULES: dict[str, Rule] = {"stft.default": _stft}
