"""`DecoderParts`: what a graph of a causal language model as Llama's is made of.

Nothing is known of models by name. The modules are looked at here, and the graph that is made of
them is run and compared with the model before anyone gets it, see `proving`.

Tested in tests/model/language/graphs/test_folders.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import ExportError
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.model.nn import Embedding, Linear
from octavo.model.nn.experts import function_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
NORMS_OF_HEADS = ("q_norm", "k_norm")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
# Whose frequencies are the same at every length.
_ROTATIONS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class FloatWeight:
    """A weight that is not quantized: float32 ``[out, in]``, and its bias."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Layer:
    """A linear layer or table: its path in the model and itself."""

    path: str
    module: nn.Module

    def weight(self) -> LinearIntegers | FloatWeight:
        """Its integers, or floats; made anew at each call, so that one layer is held at a time.

        Raises:
            ExportError: it has no form in such graphs.
        """
        module: Any = self.module
        if isinstance(module, Linear | Embedding):
            if getattr(module, "transposed", False) or getattr(module, "embed_scale", 1.0) != 1.0:
                raise ExportError(f"{self.path!r} is a {module!r}, which has no form there")
            return LinearIntegers.of(self.path, module)
        bias = getattr(module, "bias", None)
        bias = None if bias is None else bias.detach().to(torch.float32)
        return FloatWeight(module.weight.detach().to(torch.float32), bias)


@dataclass(frozen=True)
class Norm:
    """Root mean square normalization: float32 ``[n]``, and what is added to the mean square."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Block:
    """One block: layers and norms by their names in transformers.

    Attributes:
        layers: those of `ATTENTION` and `MLP`.
        norms: those of `NORMS`, and of `NORMS_OF_HEADS` where the heads have some.
        window: how many tokens attention sees; all without.
    """

    layers: Mapping[str, Layer]
    norms: Mapping[str, Norm]
    window: int | None


@dataclass(frozen=True)
class DecoderParts:
    """A causal language model as Llama's.

    Attributes:
        table: of tokens.
        blocks: in order.
        norm: behind them.
        head: which makes the logits; ``None`` where the table is that, too.
        heads: of queries.
        shared_heads: of keys and values.
        channels: of a head.
        scale: of products of queries and keys.
        activation: one of `ACTIVATIONS`.
        frequencies: of positions, float32 ``[channels / 2]``.
        amplitude: of sine and cosine.
        positions: how many the model knows.
        tokens: how many there are.
    """

    table: Layer
    blocks: tuple[Block, ...]
    norm: Norm
    head: Layer | None
    heads: int
    shared_heads: int
    channels: int
    scale: float
    activation: str
    frequencies: Tensor
    amplitude: float
    positions: int
    tokens: int

    @property
    def hidden(self) -> int:
        """Channels between the blocks."""
        return len(self.norm.weight)

    def rotations(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of all positions, float32 ``[positions, channels / 2]``."""
        angles = torch.arange(self.positions, dtype=torch.float32)[:, None] * self.frequencies
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude

    @classmethod
    def of(cls, model: Any) -> DecoderParts:
        """The parts of a model of transformers.

        Raises:
            ExportError: it is built in another way; it says where.
        """
        config, base = model.config, getattr(model, "model", None)
        children = set(getattr(base, "_modules", ()))
        if children != _DECODER or set(model._modules) != {"model", "lm_head"}:
            raise _other(model, f"its parts are {', '.join(sorted({*model._modules, *children}))}")
        assert base is not None
        rotation = base.rotary_emb
        kind = getattr(rotation, "rope_type", "default")
        if kind not in _ROTATIONS or not isinstance(getattr(rotation, "inv_freq", None), Tensor):
            raise _other(model, f"its positions are of the kind {kind!r}")
        blocks = tuple(
            _block(model, f"model.layers.{number}", block, number)
            for number, block in enumerate(base.layers)
        )
        attention, mlp = base.layers[0].self_attn, base.layers[0].mlp
        activation = function_of(mlp)
        if activation not in ACTIVATIONS:
            raise _other(model, f"its activation is {mlp.act_fn}")
        channels = int(attention.head_dim)
        return cls(
            Layer("model.embed_tokens", base.embed_tokens),
            blocks,
            _norm(model, "model.norm", base.norm),
            None if _is_tied(base.embed_tokens, model.lm_head) else Layer("lm_head", model.lm_head),
            heads=_outputs(attention.q_proj) // channels,
            shared_heads=_outputs(attention.k_proj) // channels,
            channels=channels,
            scale=float(attention.scaling),
            activation=activation,
            frequencies=rotation.inv_freq.detach().to(torch.float32),
            amplitude=float(rotation.attention_scaling),
            positions=int(config.max_position_embeddings),
            tokens=int(config.vocab_size),
        )


def _other(model: Any, why: str) -> ExportError:
    return ExportError(
        f"a {type(model).__name__} has no such graph: {why}. Graphs with a cache are written of "
        "decoders that are built as Llama's (Qwen 2 and 3, Mistral, SmolLM2)"
    )


def _block(model: Any, path: str, block: Any, number: int) -> Block:
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    if set(block._modules) != {"self_attn", "mlp", *NORMS}:
        raise _other(model, f"{path!r} has {', '.join(block._modules)}")
    assert attention is not None and mlp is not None
    heads_are_normed = "q_norm" in attention._modules
    of_heads = NORMS_OF_HEADS if heads_are_normed else ()
    for own, there, wanted in (
        ("self_attn", attention, {*ATTENTION, *of_heads}),
        ("mlp", mlp, {*MLP, "act_fn"}),
    ):
        if set(there._modules) != wanted:
            raise _other(model, f"{path}.{own} has {', '.join(there._modules)}")
    layers = {name: _layer(model, f"{path}.self_attn", attention, name) for name in ATTENTION}
    layers |= {name: _layer(model, f"{path}.mlp", mlp, name) for name in MLP}
    norms = {name: _norm(model, f"{path}.{name}", block._modules[name]) for name in NORMS}
    for name in of_heads:
        norms[name] = _norm(model, f"{path}.self_attn.{name}", attention._modules[name])
    return Block(layers, norms, _window(model.config, attention, number))


def _layer(model: Any, path: str, owner: nn.Module, name: str) -> Layer:
    module = owner._modules[name]
    if not isinstance(module, Linear) and type(module) is not nn.Linear:
        raise _other(model, f"'{path}.{name}' is a {type(module).__name__}")
    assert module is not None
    return Layer(f"{path}.{name}", module)


def _norm(model: Any, path: str, norm: Any) -> Norm:
    """A norm, by what it makes of ones: some multiply by their weight, some by that and one."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = getattr(norm, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or hasattr(norm, "bias"):
        raise _other(model, f"{path!r} is a {type(norm).__name__}")
    with torch.no_grad():
        ones = torch.ones(1, len(weight))
        return Norm(norm(ones)[0].to(torch.float32) * (1 + eps) ** 0.5, eps)


def _window(config: Any, attention: Any, number: int) -> int | None:
    """As many tokens as attention sees, where they are fewer than there may be."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[number] == "sliding_attention"
    size = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    is_smaller = size is not None and size < config.max_position_embeddings
    return int(size) if size is not None and slides and is_smaller else None


def _outputs(layer: Any) -> int:
    return int(layer.out_features)


def _is_tied(table: Any, head: Any) -> bool:
    """Whether both have one weight, and nothing else."""
    if getattr(head, "bias", None) is not None and head.bias is not False:
        return False
    if isinstance(table, Embedding) and isinstance(head, Linear):
        return table.is_shared and head.is_shared and _first(table) is _first(head)
    return getattr(table, "weight", table) is getattr(head, "weight", head)


def _first(layer: Embedding | Linear) -> Tensor:
    return layer.tensors()["weight"]
