"""Steps of a text, a few tokens each, in one native call for all blocks of a decoder.

On a small model what Python does between the layers takes longer than the layers. So a decoder of
transformers whose blocks are those of Llama, with weight-only layers, computes a step by
`octavo.runtimes.native.decoder`, and by its own code whatever is not such a step: many tokens, a
cache that keeps its keys in another form, results of single layers that are asked for. Nothing is
known of models by name: what stands in the blocks is looked at, and so are the names that their
code uses, and the first step is computed both ways and compared.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.tracing import is_compiled, is_plain
from octavo.model.language.decoder_blocks import NotLikeLlama, block_of, names_in_code
from octavo.model.language.kept_tokens import Kept, kept_by
from octavo.model.nn import QuantizedModule
from octavo.runtimes.native.decoder import Decoder

MOST_ROWS = 16  # of more, products wait for arithmetic, and Python costs nothing beside them
_NEAR = 1e-3  # relative: ours keep 16 bits of what a layer reads, as the layers alone do
# What such a decoder has, and the names that its forward may use: others do something else.
_CHILDREN = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
_NAMES = frozenset(
    """
    ValueError embed_tokens DynamicCache config get_seq_length torch arange shape device unsqueeze
    isinstance dict create_causal_mask create_sliding_window_causal_mask has_sliding_layers
    rotary_emb layers num_hidden_layers layer_types norm BaseModelOutputWithPast enumerate
    sliding_window
    """.split()
)
_ARGUMENTS = frozenset(
    "input_ids attention_mask position_ids past_key_values inputs_embeds use_cache".split()
)


def with_native_steps(model: nn.Module) -> None:
    """Let the decoders in a model compute steps natively, where they are such decoders.

    Args:
        model: changed in place: the class of a decoder becomes one that derives from its own.
    """
    for path, module in model.named_modules():
        if path and not isinstance(module, Stepping) and _looks_like_one(module):
            module.__class__ = _stepping(type(module))


def _looks_like_one(module: nn.Module) -> bool:
    return set(module._modules) == _CHILDREN and names_in_code(module) <= _NAMES


class Stepping(nn.Module):
    """What is added to the class of a decoder."""

    _base: type[nn.Module]  # to which this was added
    _steps: Steps | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args or self.training or is_compiled() or torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        asked = Asked.of(self, kwargs)
        if asked is None:
            return super().forward(*args, **kwargs)
        steps = self._steps
        if steps is None or not steps.are_current():
            if asked.kept.past == 0:  # a step behind tokens is the one that is compared
                return super().forward(*args, **kwargs)
            steps = Steps(self)
            result = steps.tried(self, asked, lambda: super(Stepping, self).forward(**kwargs))
            self._steps = steps
            return result
        result = steps.run(self, asked)
        return super().forward(*args, **kwargs) if result is None else result

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_steps"}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (type(self)._base,), self.__getstate__()


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _stepping(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _MADE:
        names = ("__module__", "__qualname__", "__doc__")
        own = {name: getattr(base, name) for name in names} | {"_base": base}
        _MADE[base] = type(base.__name__, (Stepping, base), own)
    return _MADE[base]


def _empty(base: type[nn.Module]) -> nn.Module:
    own = _stepping(base)
    return own.__new__(own)


@dataclass(frozen=True)
class Asked:
    """A step that is understood: tokens behind those of a cache.

    Attributes:
        ids: ``[batch, tokens]``; ``embeds``: their rows, where they were given instead.
        positions: ``[batch or 1, tokens]``.
        mask: what is seen; ``None`` where that is all that stands before.
        kept: keys and values of the tokens before.
    """

    ids: Tensor | None
    embeds: Tensor | None
    positions: Tensor
    mask: Tensor | None
    cache: Any
    kept: Kept

    @classmethod
    def of(cls, model: Any, given: Mapping[str, Any]) -> Asked | None:
        """``None`` where a call is something else."""
        others = (v for k, v in given.items() if k not in _ARGUMENTS)
        if any(v is not None and v is not False for v in others):
            return None
        if given.get("return_dict") is False:
            return None
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        tokens = ids if embeds is None else embeds
        if tokens is None or (ids is None) == (embeds is None) or type(tokens) is not Tensor:
            return None
        batch, count = tokens.shape[:2]
        if not 0 < batch * count <= MOST_ROWS or not _is_as_usual(model.config):
            return None
        cache = given.get("past_key_values")
        kept = kept_by(cache, len(model.layers))
        if kept is None:
            return None
        window, sources = getattr(model.config, "sliding_window", None), kept.past + count
        if sources > (kept.most if window is None else min(kept.most, window)):
            return None
        mask = _mask(given.get("attention_mask"), batch, count, kept.past, tokens.device)
        is_padded = mask is not _ALL and given.get("attention_mask") is not None
        if mask is None or (kept.past == 0 and is_padded and not bool(mask.any(-1).all())):
            return None  # what stands before a text sees nothing
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(kept.past, sources, device=tokens.device)[None]
        return cls(ids, embeds, positions, None if mask is _ALL else mask, cache, kept)


_ALL = torch.ones((), dtype=torch.bool)


def _is_as_usual(config: Any) -> bool:
    """Whether attention is computed by torch, and nothing of single layers is returned."""
    returned = ("output_attentions", "output_hidden_states")
    is_plain_record = getattr(config, "return_dict", True) and not any(
        getattr(config, name, False) for name in returned
    )
    return is_plain_record and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def _mask(mask: Any, batch: int, count: int, past: int, device: torch.device) -> Tensor | None:
    """bool ``[batch, 1, count, sources]``; `_ALL` where nothing is hidden; ``None`` where it is not
    known what a mask means.
    """
    sources = past + count
    if mask is not None:
        if type(mask) is not Tensor or mask.shape != (batch, sources):
            return None
        mask = None if bool(mask.all()) else mask[:, None, None, :].bool()
    if count == 1:
        return _ALL if mask is None else mask
    seen = torch.ones(count, sources, dtype=torch.bool, device=device).tril(past)
    return seen[None, None] if mask is None else mask & seen


class Steps:
    """The blocks of a decoder as native calls, and what has to stay as it is for that."""

    def __init__(self, model: Any) -> None:
        self._decoder: Decoder | None = None
        with suppress(NotLikeLlama, ValueError):  # the latter where blocks are of different sizes
            self._decoder = Decoder([block_of(block) for block in model.layers])
        self._changes = QuantizedModule.changes
        inside = set(model.layers.modules())
        held = [
            (names, name)
            for module in (model, *inside)
            for names in (module._modules, module._parameters)
            for name in names
        ]
        # Whoever watches or changes a module may give it a forward of its own.
        held += [(module.__dict__, "forward") for module in inside]
        # Numbers that the native calls have taken from attention and norms.
        numbers = ("scaling", "head_dim", "variance_epsilon")
        held += [(m.__dict__, name) for m in inside for name in numbers if name in m.__dict__]
        self._names = tuple(zip(*held, strict=True))
        self._values = [names.get(name) for names, name in held]
        weights = [one for module in inside for one in module._parameters.values()]
        self._weights = [one for one in weights if one is not None]
        self._places = list(map(Tensor.data_ptr, self._weights))
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        self._hooks = [getattr(module, kind) for module in inside for kind in kinds]

    def are_current(self) -> bool:
        """Whether weights and modules are those that this was made of."""
        return (
            self._changes == QuantizedModule.changes
            and all(map(is_, map(dict.get, *self._names), self._values))
            and list(map(Tensor.data_ptr, self._weights)) == self._places
        )

    def tried(self, model: Any, asked: Asked, exact: Callable[[], Any]) -> Any:
        """The first step, both ways; if they differ no step is native."""
        found = self._computed(model, asked)
        if found is None:
            return exact()
        tokens = asked.positions.shape[1]
        kept = asked.kept.newest(tokens)
        result = exact()
        layers, end = asked.cache.layers, asked.kept.past + tokens
        exact_kept = torch.stack(
            [t[:, :, end - tokens : end] for layer in layers for t in (layer.keys, layer.values)]
        )
        is_plain_record = set(result) <= {"last_hidden_state", "past_key_values"}
        near = _are_near(found, result.last_hidden_state) and _are_near(kept, exact_kept)
        if not (is_plain_record and near):
            self._decoder = None
        self._record = type(result)
        return result

    def run(self, model: Any, asked: Asked) -> Any:
        """What the decoder returns; ``None`` where its own code has to compute it."""
        found = self._computed(model, asked)
        if found is None:
            return None
        asked.kept.advance(asked.cache, asked.positions.shape[1])
        return self._record(last_hidden_state=found, past_key_values=asked.cache)

    def _computed(self, model: Any, asked: Asked) -> Tensor | None:
        if self._decoder is None or any(self._hooks):
            return None
        x = model.embed_tokens(asked.ids) if asked.embeds is None else asked.embeds
        if not is_plain(x):
            return None
        rotary = model.rotary_emb(x, position_ids=asked.positions)
        kept = asked.kept
        block = self._decoder.blocks[0]
        caches = kept.caches(x.shape[1], (x.shape[0], block.shared_heads, block.channels))
        rows = self._decoder(x, rotary, caches, kept.past, asked.mask)
        return None if rows is None else model.norm(rows)


def _are_near(ours: Tensor, exact: Tensor) -> bool:
    return bool((ours - exact).norm() <= _NEAR * exact.norm())
