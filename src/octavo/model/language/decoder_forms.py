"""What native calls have to know of a decoder of transformers beside its blocks: how tokens become
rows, and which function stands behind the last block.

Nothing is known of models by name: what stands in a decoder is looked at, and so are the names that
its code uses.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.model.language.decoder_blocks import (
    FLOATS,
    NotKnown,
    Outside,
    block_of,
    names_in_code,
)
from octavo.runtimes.native.decoder import ROTATIONS, Block

_TOKENS, _POSITIONS, _NORM_OF_TOKENS = "tokens", "positions", "norm of tokens"
_ROTARY, _BLOCKS, _LAST, _NOTHING = "rotary", "blocks", "last", "nothing"
_FORMS: Sequence[Mapping[str, str]] = (
    {"embed_tokens": _TOKENS, "layers": _BLOCKS, "norm": _LAST, "rotary_emb": _ROTARY},
    {
        **{"embed_tokens": _TOKENS, "layers": _BLOCKS, "final_layernorm": _LAST},  # Phi
        **{"rotary_emb": _ROTARY, "embed_dropout": _NOTHING},
    },
    {
        **{"embed_in": _TOKENS, "layers": _BLOCKS, "final_layer_norm": _LAST},  # GPT-NeoX
        **{"rotary_emb": _ROTARY, "emb_dropout": _NOTHING},
    },
    {"wte": _TOKENS, "wpe": _POSITIONS, "drop": _NOTHING, "h": _BLOCKS, "ln_f": _LAST},  # GPT-2
    {
        **{"embed_tokens": _TOKENS, "layers": _BLOCKS, "final_layer_norm": _LAST},  # OPT
        "embed_positions": _POSITIONS,
    },
    {
        **{"word_embeddings": _TOKENS, "h": _BLOCKS, "ln_f": _LAST},  # Bloom
        "word_embeddings_layernorm": _NORM_OF_TOKENS,
    },
)
# The names that the forward of a decoder may use beside its children's: others do something else.
_NAMES = frozenset(
    """
    ValueError DynamicCache config get_seq_length torch arange shape device unsqueeze isinstance
    dict create_causal_mask create_sliding_window_causal_mask has_sliding_layers num_hidden_layers
    layer_types BaseModelOutputWithPast enumerate sliding_window _bidirectional_window_overlay copy
    set use_bidirectional_attention BaseModelOutputWithPastAndCrossAttentions EncoderDecoderCache
    add_cross_attention create_bidirectional_mask gradient_checkpointing ndim pop size to training
    view warn_if_padding_and_no_attention_mask cumsum layerdrop long ones project_in project_out
    rand _get_alibi_slopes build_alibi_tensor dtype get_mask_sizes logger num_heads repeat
    output_attentions output_hidden_states return_dict tuple use_cache warning_once tensor bool
    """.split()
)


def looks_like_one(module: nn.Module) -> bool:
    """Whether a module may be such a decoder."""
    form = _form(module)
    if form is None or not names_in_code(module) <= _NAMES | set(form):
        return False
    blocks = next(name for name, part in form.items() if part == _BLOCKS)
    return isinstance(module._modules[blocks], nn.ModuleList)


def _form(module: nn.Module) -> Mapping[str, str] | None:
    return next((form for form in _FORMS if set(form) == set(module._modules)), None)


class Form:
    """How a decoder makes rows of tokens, and its blocks.

    Args:
        model: `looks_like_one`.
        base: the class whose forward it has, beside what was added to it.

    Attributes:
        dtype: of the rows between its blocks.

    Raises:
        NotKnown: it computes something else.
    """

    def __init__(self, model: Any, base: type[nn.Module]) -> None:
        form = _form(model) or {}
        parts = {part: model._modules[name] for name, part in form.items()}
        self.tokens: Any = parts[_TOKENS]
        self.last: Any = parts[_LAST]
        self._positions: Any = parts.get(_POSITIONS)
        self._norm_of_tokens: Any = parts.get(_NORM_OF_TOKENS)
        self._rotary: Any = parts.get(_ROTARY)
        self._model, self._layers, config = model, parts[_BLOCKS], model.config
        if getattr(config, "use_bidirectional_attention", False):
            raise NotKnown("its tokens see those behind them")
        self._names = names_in_code(model, base)
        self._counts_mask = "cumsum" in self._names
        kinds = getattr(config, "layer_types", None) if "layer_types" in self._names else None
        self._kinds = list(kinds) if kinds else []
        # Whether layers of each kind have a rotation of their own.
        takes = inspect.signature(self._rotary.forward).parameters if self._rotary else ()
        self._has_kinds = bool(self._kinds) and "layer_type" in takes
        of_last = next(self.last.parameters(), None)
        if of_last is None or of_last.dtype not in FLOATS:
            raise NotKnown("its last norm has no weight in float32 or bfloat16")
        self.dtype = of_last.dtype
        self._slopes = self._slopes_of_scores()

    @property
    def count(self) -> int:
        """Of its blocks."""
        return len(self._layers)

    def blocks(self) -> list[Block]:
        """As native calls take them.

        Raises:
            NotKnown: a block computes something else, or has layers without such kernels.
        """
        sample = self.rotations(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long))
        if len(sample) > ROTATIONS:
            raise NotKnown(f"it has {len(sample)} kinds of rotations")
        found = []
        for index, layer in enumerate(self._layers):
            rotation = self._of_kinds.index(self._kinds[index]) if self._has_kinds else 0
            turned = sample[rotation][0].shape[-1] if sample else 0
            outside = Outside(turned, rotation, self._window(index), self._slopes)
            found.append(block_of(layer, outside))
        return found

    def rows(self, ids: Tensor | None, embeds: Tensor | None, positions: Tensor) -> Tensor:
        """What the first block reads."""
        x: Tensor = self.tokens(ids) if embeds is None else embeds
        if self._positions is not None:
            given = (None, 0, positions) if self._counts_mask else (positions,)
            x = x + self._positions(*given)
        return x if self._norm_of_tokens is None else self._norm_of_tokens(x)

    def rotations(self, x: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines of each kind, in float32."""
        if self._rotary is None:
            return []
        floats = x.float()
        if self._has_kinds:
            return [self._rotary(floats, positions, kind) for kind in self._of_kinds]
        return [self._rotary(floats, position_ids=positions)]

    def positions(self, mask: Tensor | None, past: int, tokens: int) -> Tensor:
        """Where a call does not say them: int64 ``[batch or 1, tokens]``."""
        if mask is None or not self._counts_mask:
            return torch.arange(past, past + tokens)[None]
        return (mask.cumsum(1) * mask - 1).long()[:, past:]

    def knows(self, mask: Tensor) -> bool:
        """Whether scores grow as native calls have it: by the places of tokens, all of which count
        that stand behind a text's first.
        """
        return self._slopes is None or bool((mask[:, 1:] >= mask[:, :-1]).all())

    @property
    def _of_kinds(self) -> list[str]:
        return sorted(set(self._kinds))

    def _window(self, index: int) -> int:
        if "create_sliding_window_causal_mask" not in self._names:
            return 0
        if self._kinds and self._kinds[index] != "sliding_attention":
            return 0
        return int(getattr(self._model.config, "sliding_window", None) or 0)

    def _slopes_of_scores(self) -> Tensor | None:
        """How scores grow with the number of a token."""
        if "build_alibi_tensor" not in self._names:
            return None
        heads = int(self._model.num_heads)
        two = self._model.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
        return (two[:, 0, 1] - two[:, 0, 0]).contiguous()  # type: ignore[no-any-return]
