"""What native kernels have to know of a block of a decoder, if it is one as Llama has them.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from octavo.model.nn import Linear
from octavo.model.nn.experts import function_of
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.decoder import Block, Norm
from octavo.runtimes.native.products import Product

_NORMS = {"input_layernorm": "before_attention", "post_attention_layernorm": "before_gate"}
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_NORMS_OF_HEADS = {"q_norm": "of_queries", "k_norm": "of_keys"}
_MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_ACTIVATIONS = {
    "silu": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
}
# The names that the code of each may use: of others it would have to be read what they do.
_CODE_OF_BLOCK = frozenset({"self_attn", "mlp", *_NORMS})
_CODE_OF_MLP = frozenset({*_MLP, "act_fn"})
_CODE_OF_ATTENTION = frozenset(
    """
    shape head_dim view transpose apply_rotary_pos_emb update layer_idx ALL_ATTENTION_FUNCTIONS
    get_interface config _attn_implementation eager_attention_forward training attention_dropout
    scaling reshape contiguous sliding_window getattr
    """.split()
).union(_ATTENTION, _NORMS_OF_HEADS)


class NotLikeLlama(Exception):
    """A block computes something else, or has layers without such kernels; the message says what,
    as a clause.
    """


def names_in_code(module: nn.Module) -> frozenset[str]:
    """The names of functions and attributes that the code of a module's ``forward`` uses."""
    if "forward" in module.__dict__:  # in place of its class's
        return frozenset({"?"})
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return frozenset({"?"} if code is None else code.co_names)


def block_of(block: nn.Module) -> Block:
    """A block of a decoder, of which native kernels can be called.

    Raises:
        NotLikeLlama: it is none of these.
    """
    _expect(block, _CODE_OF_BLOCK, _CODE_OF_BLOCK)
    attention: Any = block.self_attn
    mlp: Any = block.mlp
    heads_are_normed = "q_norm" in attention._modules
    norms_of_heads = _NORMS_OF_HEADS if heads_are_normed else {}
    _expect(attention, {*_ATTENTION, *norms_of_heads}, _CODE_OF_ATTENTION)
    _expect(mlp, _CODE_OF_MLP, _CODE_OF_MLP)
    layers = {own: _product(attention._modules[name]) for name, own in _ATTENTION.items()}
    layers |= {own: _product(mlp._modules[name]) for name, own in _MLP.items()}
    norms = {own: _norm(block._modules[name]) for name, own in _NORMS.items()}
    norms |= {own: _norm(attention._modules[name]) for name, own in norms_of_heads.items()}
    function = function_of(mlp)
    if function not in _ACTIVATIONS:
        raise NotLikeLlama(f"its activation is {mlp.act_fn}")
    channels = int(attention.head_dim)
    found = Block(
        layers,
        norms,
        heads=layers["query"].rows // channels,
        shared_heads=layers["key"].rows // channels,
        channels=channels,
        scale=float(attention.scaling),
        activation=_ACTIVATIONS[function],
    )
    try:
        found.check()
    except ValueError as error:
        raise NotLikeLlama(str(error)) from None
    return found


def _expect(module: nn.Module, children: set[str] | frozenset[str], names: frozenset[str]) -> None:
    others = set(module._modules) ^ children | names_in_code(module) - names
    own = [*module._parameters, *module._buffers]
    if others or own:
        raise NotLikeLlama(f"a {type(module).__name__} has {', '.join(sorted([*others, *own]))}")


def _product(layer: nn.Module | None) -> Product:
    product = layer.product() if isinstance(layer, Linear) and not layer._is_shared else None
    if product is None or not isinstance(layer, Linear) or layer.dtype != torch.float32:
        raise NotLikeLlama(f"a {type(layer).__name__} has no such kernel")
    bias = layer.own_tensors().get("bias")
    return product if bias is None else product.with_bias(bias)


def _norm(norm: Any) -> Norm:
    """A norm, by what it makes of some numbers."""
    weight: Tensor | None = norm._parameters.get("weight")
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.dtype != torch.float32 or not isinstance(eps, float):
        raise NotLikeLlama(f"a {type(norm).__name__} is no norm of float32")
    x = torch.linspace(-1.0, 3.0, weight.numel())
    with torch.no_grad():
        exact, plain = norm(x[None]), x * torch.rsqrt(x.square().mean() + eps)
        for more in (0.0, 1.0):
            if torch.allclose(exact[0], plain * (weight + more), rtol=1e-5, atol=1e-6):
                return Norm(weight.detach(), eps, more)
    raise NotLikeLlama(f"a {type(norm).__name__} computes something else")
