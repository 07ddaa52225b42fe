"""Calls of a decoder, those of a step and those of a prompt, as one native call for all its blocks.

On a small model what Python does between the layers takes longer than the layers, and what torch's
threads do behind each of its operators takes half of a core from ours. So a decoder of transformers
whose blocks are known (`decoder_blocks`), with weight-only layers, is computed by
`octavo.runtimes.native.decoder`, and by its own code whatever is not such a call: a cache that
keeps its keys in another form, results of single layers that are asked for. Before the first call a
few tokens are computed both ways and compared.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.tracing import is_compiled, is_plain
from octavo.model.language.decoder_blocks import NotKnown
from octavo.model.language.decoder_forms import Form, looks_like_one
from octavo.model.language.freed_memory import give_back_freed_memory
from octavo.model.language.kept_tokens import Kept, kept_by, new_cache
from octavo.model.nn import Linear, QuantizedModule
from octavo.runtimes.native.decoder import Decoder

# How far results may be apart: ours keep 16 bits of what a layer reads, as the layers alone do, and
# round nothing in between.
_NEAR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_TRIED = 33  # tokens that are compared: so many that keys are packed
_ARGUMENTS = frozenset(
    """
    input_ids attention_mask position_ids past_key_values inputs_embeds use_cache return_dict
    """.split()
)


def with_native_steps(model: nn.Module) -> None:
    """Let the decoders in a model be computed natively, where they are known.

    Args:
        model: changed in place: the class of a decoder becomes one that derives from its own.
    """
    for path, module in model.named_modules():
        if path and not isinstance(module, Stepping) and looks_like_one(module):
            module.__class__ = _stepping(type(module))


class Stepping(nn.Module):
    """What is added to the class of a decoder."""

    _base: type[nn.Module]  # to which this was added
    _steps: Steps | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training or is_compiled() or torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        steps = self._steps
        if steps is None or not steps.are_current():
            steps = Steps(self)
            steps.try_out(self, super().forward)
            give_back_freed_memory()  # what weights were packed from, and both results
            self._steps = steps  # not before: another thread would call what was not tried
        given = kwargs
        if args:
            names = inspect.signature(self._base.forward).parameters
            given = dict(zip(list(names)[1:], args, strict=False)) | kwargs
        result = steps.run(self, given)
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
    """A call that is understood: tokens behind those of a cache.

    Attributes:
        ids: ``[batch, tokens]``; ``embeds``: their rows, where they were given instead.
        positions: ``[batch or 1, tokens]``.
        mask: bool ``[batch, 1, 1, sources]``: what is seen; ``None`` where that is all that stands
            before.
        cache: as the call was given it, or a new one; ``None`` where nothing is to be kept.
        kept: keys and values of the tokens before.
    """

    ids: Tensor | None
    embeds: Tensor | None
    positions: Tensor
    mask: Tensor | None
    cache: Any
    kept: Kept

    @property
    def rows(self) -> int:
        """Tokens, in all texts."""
        tokens = self.ids if self.embeds is None else self.embeds
        assert tokens is not None
        return tokens.shape[0] * tokens.shape[1]

    @classmethod
    def of(cls, model: Any, form: Form, given: Mapping[str, Any]) -> Asked | None:
        """``None`` where a call is something else."""
        others = (v for k, v in given.items() if k not in _ARGUMENTS)
        if any(v is not None and v is not False for v in others):
            return None
        if given.get("return_dict") is False or not _is_as_usual(model.config):
            return None
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        tokens = ids if embeds is None else embeds
        if tokens is None or (ids is None) == (embeds is None) or type(tokens) is not Tensor:
            return None
        if tokens.dim() != (2 if embeds is None else 3) or tokens.numel() == 0:
            return None
        cache, own = given.get("past_key_values"), given.get("use_cache")
        keeps = bool(getattr(model.config, "use_cache", True) if own is None else own)
        if cache is not None and not keeps:
            return None
        if cache is None:
            cache = new_cache(model.config)
        kept, count = kept_by(cache, form.count, form.dtype), tokens.shape[1]
        if kept is None or not kept.has_room(count):
            return None
        given_mask = given.get("attention_mask")
        if given_mask is not None and (
            type(given_mask) is not Tensor
            or given_mask.shape != (tokens.shape[0], kept.past + count)
        ):
            return None
        mask = kept.mask(given_mask, count)
        if mask is not None and not form.knows(mask):
            return None
        mask = None if mask is None or bool(mask.all()) else mask[:, None, None, :].bool()
        positions = given.get("position_ids")
        if positions is None:
            positions = form.positions(given_mask, kept.past, count)
        elif given_mask is None and not keeps and not bool((positions.diff() == 1).all()):
            return None  # several texts in a row, which do not see each other
        return cls(ids, embeds, positions, mask, cache if keeps else None, kept)


def _is_as_usual(config: Any) -> bool:
    """Whether attention is computed by torch, and nothing of single layers is returned."""
    returned = ("output_attentions", "output_hidden_states")
    is_plain_record = getattr(config, "return_dict", True) and not any(
        getattr(config, name, False) for name in returned
    )
    return is_plain_record and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


class Steps:
    """The blocks of a decoder as native calls, and what has to stay as it is for that."""

    def __init__(self, model: Any) -> None:
        self._decoder: Decoder | None = None
        self._record: Any = None
        blocks = next(m for m in model._modules.values() if isinstance(m, nn.ModuleList))
        inside = set(blocks.modules())
        linears = [module for module in inside if isinstance(module, Linear)]
        self._linears = linears
        self._rounds_from = {linear.rounds_from for linear in linears}
        # Others than NotKnown of what only looks like a decoder that is known.
        with suppress(NotKnown, ValueError, AttributeError, KeyError, TypeError, RuntimeError):
            self._form = Form(model, type(model)._base)
            if len(self._rounds_from) == 1:
                self._decoder = Decoder(self._form.blocks())
        self._changes = QuantizedModule.changes
        held = [
            (names, name)
            for module in (model, *inside)
            for names in (module._modules, module._parameters)
            for name in names
        ]
        # Whoever watches or changes a module may give it a forward of its own.
        held += [(module.__dict__, "forward") for module in inside]
        # Numbers that the native calls have taken from attention and norms.
        held += [(m.__dict__, name) for m in inside for name in _NUMBERS if name in m.__dict__]
        self._names = tuple(zip(*held, strict=True))
        self._values = [names.get(name) for names, name in held]
        weights = [one for module in inside for one in module._parameters.values()]
        self._weights = [one for one in weights if one is not None]
        self._places = list(map(Tensor.data_ptr, self._weights))
        biases = ((linear, linear._buffers.get("bias")) for linear in linears)
        self._biases = [(linear, bias) for linear, bias in biases if bias is not None]
        # Of those that are not float32 there are copies, and of biases.
        copied = [one for one in self._weights if one.dtype != torch.float32]
        self._copied: list[Tensor] = [*copied, *(bias for _, bias in self._biases)]
        self._versions = [_version(one) for one in self._copied]
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        self._hooks = [getattr(module, kind) for module in inside for kind in kinds]

    def are_current(self) -> bool:
        """Whether weights and modules are those that this was made of."""
        return (
            self._changes == QuantizedModule.changes
            and all(map(is_, map(dict.get, *self._names), self._values))
            and list(map(Tensor.data_ptr, self._weights)) == self._places
            and all(linear._buffers.get("bias") is bias for linear, bias in self._biases)
            and [_version(one) for one in self._copied] == self._versions
        )

    def try_out(self, model: Any, exact: Callable[..., Any]) -> None:
        """A few tokens, and one behind them, both ways; if they differ no call is native."""
        if self._decoder is None or any(self._hooks):
            self._decoder = None
            return
        try:
            self._compare(model, exact)
        except Exception:  # noqa: BLE001  (what an unknown decoder says to a call that nobody made)
            self._decoder = None

    def _compare(self, model: Any, exact: Callable[..., Any]) -> None:
        positions = getattr(model.config, "max_position_embeddings", None) or 2 * _TRIED
        count = min(_TRIED, positions - 1)
        known = int(self._form.tokens.num_embeddings)
        if count < 1:
            self._decoder = None
            return
        tokens = torch.arange(7, 7 + 5 * (count + 1), 5)[None] % known
        caches = [new_cache(model.config) for _ in range(2)]
        for ids in (tokens[:, :count], tokens[:, count:]):
            asked = Asked.of(model, self._form, {"input_ids": ids, "past_key_values": caches[0]})
            found = None if asked is None else self._computed(asked, is_rounded=False)
            with _rounding_none(self._linears):
                result = exact(input_ids=ids, past_key_values=caches[1], use_cache=True)
            is_plain_record = set(result) <= {"last_hidden_state", "past_key_values"}
            if asked is None or found is None or not is_plain_record:
                self._decoder = None
                return
            self._record, new = type(result), asked.kept.newest(ids.shape[1])
            asked.kept.advance(caches[0], ids.shape[1])
            pairs = [t for layer in caches[1].layers for t in (layer.keys, layer.values)]
            kept = [t[:, :, t.shape[2] - n.shape[2] :] for t, n in zip(pairs, new, strict=True)]
            ours, right = [found, *new], [result.last_hidden_state, *kept]
            if not all(map(self._are_near, ours, right)):
                self._decoder = None
                return

    def _are_near(self, ours: Tensor, exact: Tensor) -> bool:
        ours, exact = ours.float()[:, :, -exact.shape[2] :], exact.float()
        return bool((ours - exact).norm() <= _NEAR[self._form.dtype] * exact.norm())

    def run(self, model: Any, given: Mapping[str, Any]) -> Any:
        """What the decoder returns; ``None`` where its own code has to compute it."""
        if self._decoder is None or any(self._hooks):
            return None
        asked = Asked.of(model, self._form, given)
        if asked is None:
            return None
        is_rounded = asked.rows >= min(self._rounds_from)
        found = self._computed(asked, is_rounded)
        if found is None:
            return None
        if asked.cache is not None:
            asked.kept.advance(asked.cache, asked.positions.shape[1])
        return self._record(last_hidden_state=found, past_key_values=asked.cache)

    def _computed(self, asked: Asked, is_rounded: bool) -> Tensor | None:
        assert self._decoder is not None, "whoever calls has looked"
        form, kept = self._form, asked.kept
        x = form.rows(asked.ids, asked.embeds, asked.positions).float()
        if not is_plain(x) or asked.positions.dtype != torch.int64:
            return None
        batch, tokens = x.shape[:2]
        rotations = form.rotations(x, asked.positions)
        caches = kept.caches(batch, tokens, self._decoder.blocks)
        rows = self._decoder(x.contiguous(), rotations, caches, asked.mask, rounded=is_rounded)
        return None if rows is None else form.last(rows.to(form.dtype))


_NUMBERS = (
    *("scaling", "head_dim", "head_size", "inv_norm_factor", "sliding_window"),
    *("variance_epsilon", "eps", "attn_logit_softcapping", "use_parallel_residual"),
)


@contextmanager
def _rounding_none(linears: Sequence[Linear]) -> Iterator[None]:
    """Layers read what they read with 16 bits meanwhile: of two roundings to eight bits each makes
    other steps of what differs by nothing, and nothing could be compared.
    """
    before = [linear.rounds_from for linear in linears]
    for linear in linears:
        linear.rounds_from = math.inf
    try:
        yield
    finally:
        for linear, rows in zip(linears, before, strict=True):
            linear.rounds_from = rows


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
