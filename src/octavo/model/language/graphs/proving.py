"""Graphs with a cache, run before anyone gets them, and compared with the model they are of.

Tested in tests/model/language/graphs/test_folders.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.model.language.graphs.decoder import DecoderParts

Step = Callable[[Tensor, int], Tensor]

_FIRST, _MORE = 12, 4  # tokens of a prompt, and behind it one at a time
_LONGEST_WINDOW = 64  # of attention that sees few tokens; longer ones are not walked out of
_NEAR = 0.02  # of the logits' norm: our kernels for four bits keep 8 bits of what they read


def prove(model: Any, decoder: DecoderParts, step: Step) -> None:
    """Compare the logits of a prompt, and of some tokens behind it, one at a time.

    Args:
        model: what the graph is of.
        decoder: its parts.
        step: gives the logits ``[1, new, tokens]`` of new tokens ``[1, new]`` behind so many that
            it has seen.

    Raises:
        ExportError: they are others.
    """
    windows = [block.window for block in decoder.blocks if block.window]
    shortest = min((w for w in windows if w <= _LONGEST_WINDOW), default=0)
    prompt = min(max(_FIRST, shortest + 1), decoder.positions - _MORE)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.tokens, (1, prompt + _MORE), generator=random)
    with torch.no_grad():
        wanted = model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()
    parts = ids.split([prompt, *[1] * _MORE], dim=1)
    seen = [0, *range(prompt, prompt + _MORE)]
    found = torch.cat([step(part, count) for part, count in zip(parts, seen, strict=True)], dim=1)
    far = float((found - wanted).norm() / wanted.norm())
    if not far <= _NEAR:
        raise ExportError(
            f"the graph of a {type(model).__name__} computes something else than the model: its "
            f"logits are {100 * far:.3g} % away. It has something that Llama's decoders have not, "
            "and is not written"
        )
