"""What native kernels have to know of a block of a decoder, if it is one of those known here.

Nothing is known of models by name: what stands in a block is looked at, and so are the names that
its code uses.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.model.nn import Linear
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.decoder import Block, Norm, Places
from octavo.runtimes.native.products import Product

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    Activation.CLIP: F.relu,
}
# What the children of a block are: other parts, norms and layers by the names of `Block`, and what
# does nothing in evaluation.
_ATTENTION, _MLP, _FUNCTION, _NOTHING = "attention", "mlp", "function", "nothing"
_BESIDE, _BY_HEAD = "query, key and value", "query, key and value of each head"
_GATE_AND_UP, _BOTH_NORMS = "gate and up", "before_attention and before_gate"
_Form = Mapping[str, str]
_BEFORE = {"input_layernorm": "before_attention", "post_attention_layernorm": "before_gate"}
_BLOCKS: Sequence[_Form] = (
    {"self_attn": _ATTENTION, "mlp": _MLP, **_BEFORE},  # Llama and most others
    {
        **{"self_attn": _ATTENTION, "mlp": _MLP, **_BEFORE},  # Phi-3
        **dict.fromkeys(("resid_attn_dropout", "resid_mlp_dropout"), _NOTHING),
    },
    {
        **{"self_attn": _ATTENTION, "mlp": _MLP, "input_layernorm": "before_attention"},  # Gemma 2
        "post_attention_layernorm": "after_attention",
        "pre_feedforward_layernorm": "before_gate",
        "post_feedforward_layernorm": "after_down",
    },
    {"attn": _ATTENTION, "mlp": _MLP, "ln_1": "before_attention", "ln_2": "before_gate"},  # GPT-2
    {
        **{"attention": _ATTENTION, "mlp": _MLP, **_BEFORE},  # GPT-NeoX
        **dict.fromkeys(("post_attention_dropout", "post_mlp_dropout"), _NOTHING),
    },
    {
        **{
            "self_attn": _ATTENTION,
            "fc1": "gate",
            "fc2": "down",
            "activation_fn": _FUNCTION,
        },  # OPT
        "self_attn_layer_norm": "before_attention",
        "final_layer_norm": "before_gate",
    },
    {"self_attention": _ATTENTION, "mlp": _MLP, **_BEFORE},  # Bloom
    {
        **{"self_attn": _ATTENTION, "mlp": _MLP, "input_layernorm": _BOTH_NORMS},  # Phi
        "resid_dropout": _NOTHING,
    },
)
_QUERY_KEY_VALUE = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
_NORMS_OF_HEADS = {"q_norm": "of_queries", "k_norm": "of_keys"}
_ATTENTIONS: Sequence[_Form] = (
    {**_QUERY_KEY_VALUE, "o_proj": "out"},
    {**_QUERY_KEY_VALUE, "o_proj": "out", **_NORMS_OF_HEADS},
    {**_QUERY_KEY_VALUE, "out_proj": "out"},
    {**_QUERY_KEY_VALUE, "dense": "out"},
    {"qkv_proj": _BESIDE, "o_proj": "out"},
    {
        **{"c_attn": _BESIDE, "c_proj": "out"},
        **dict.fromkeys(("attn_dropout", "resid_dropout"), _NOTHING),
    },
    {"query_key_value": _BY_HEAD, "dense": "out"},
    {"query_key_value": _BY_HEAD, "dense": "out", "attention_dropout": _NOTHING},
)
_MLPS: Sequence[_Form] = (
    {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "act_fn": _FUNCTION},
    {"gate_up_proj": _GATE_AND_UP, "down_proj": "down", "activation_fn": _FUNCTION},
    {"c_fc": "gate", "c_proj": "down", "act": _FUNCTION, "dropout": _NOTHING},
    {"dense_h_to_4h": "gate", "dense_4h_to_h": "down", "act": _FUNCTION},
    {"dense_h_to_4h": "gate", "dense_4h_to_h": "down", "gelu_impl": _FUNCTION},
    {"fc1": "gate", "fc2": "down", "activation_fn": _FUNCTION},
)
# The names that their code may use beside its children's: of others it would have to be read what
# they do.
_NAMES_OF_BLOCKS = frozenset(
    """
    ValueError crossattention hasattr ln_cross_attn use_parallel_residual do_layer_norm_before
    dropout functional nn reshape shape size training view apply_residual_connection_post_layernorm
    """.split()
)
_NAMES_OF_MLPS = frozenset(
    """
    F dropout_add hidden_dropout int linear pretraining_tp range shape slow_but_exact torch training
    weight zeros_like chunk
    """.split()
)
_NAMES_OF_ATTENTIONS = frozenset(
    """
    shape head_dim view transpose apply_rotary_pos_emb update layer_idx ALL_ATTENTION_FUNCTIONS
    get_interface config _attn_implementation eager_attention_forward training attention_dropout
    scaling reshape contiguous sliding_window getattr attn_logit_softcapping num_attention_heads
    num_key_value_heads cat torch rotary_ndims qk_layernorm q_layernorm k_layernorm chunk head_size
    dropout num_heads size EncoderDecoderCache ValueError _upcast_and_reordered_attn
    cross_attention_cache get hasattr is_updated isinstance keys layers p q_attn
    reorder_and_upcast_attn self_attention_cache split split_size values F _merge_heads _reshape
    baddbmm beta bmm dropout_add dtype float32 hidden_dropout hidden_size int inv_norm_factor linear
    pretraining_tp range slow_but_exact softmax to weight zeros_like
    """.split()
)
# What a part may be told, with the only value that is known here.
_SETTINGS = {
    "do_layer_norm_before": True,
    "apply_residual_connection_post_layernorm": False,
    "beta": 1.0,
    "qk_layernorm": False,
}


class NotKnown(Exception):
    """A block computes something else, or has layers without such kernels; the message says what,
    as a clause.
    """


def names_in_code(module: nn.Module, base: type[nn.Module] | None = None) -> frozenset[str]:
    """The names of functions and attributes that the code of a module's ``forward`` uses, or that
    of a base of its class.
    """
    if "forward" in module.__dict__:  # in place of its class's
        return frozenset({"?"})
    code = getattr(inspect.unwrap((base or type(module)).forward), "__code__", None)
    return frozenset({"?"} if code is None else code.co_names)


@dataclass(frozen=True)
class Outside:
    """What a block has of its decoder.

    Attributes:
        turned: channels of each head that are rotated, by the rotation of the number ``rotation``.
        window: tokens that a row sees, at most; 0 for all.
        slopes: see `Block`.
    """

    turned: int = 0
    rotation: int = 0
    window: int = 0
    slopes: Tensor | None = None


def block_of(block: nn.Module, outside: Outside) -> Block:
    """A block of a decoder, of which native kernels can be called.

    Raises:
        NotKnown: it is none of these.
    """
    parts = _parts(block, _BLOCKS, _NAMES_OF_BLOCKS)
    attention: Any = parts.pop(_ATTENTION)
    parts |= _parts(attention, _ATTENTIONS, _NAMES_OF_ATTENTIONS)
    if _MLP in parts:
        parts |= _parts(parts.pop(_MLP), _MLPS, _NAMES_OF_MLPS)
    if _BOTH_NORMS in parts:
        parts |= dict.fromkeys(("before_attention", "before_gate"), parts[_BOTH_NORMS])
    activation = _activation(parts.pop(_FUNCTION))
    norms = {name: _norm(part) for name, part in parts.items() if name in _NORMS}
    layers = {name: _product(part) for name, part in parts.items() if name in _LAYERS}
    channels = int(getattr(attention, "head_dim", 0) or attention.head_size)
    heads = layers["out"].columns // channels
    layers, places, shared = _heads(layers, heads, channels)
    scale = getattr(attention, "scaling", None) or attention.inv_norm_factor
    capped = "attn_logit_softcapping" in names_in_code(attention)
    found = Block(
        layers,
        norms,
        heads=heads,
        shared_heads=shared,
        channels=channels,
        scale=float(scale),
        activation=activation,
        places=places,
        turned=outside.turned,
        rotation=outside.rotation,
        window=outside.window,
        softcap=float(attention.attn_logit_softcapping or 0) if capped else 0.0,
        slopes=outside.slopes,
        is_parallel=bool(getattr(block, "use_parallel_residual", _BOTH_NORMS in parts)),
    )
    try:
        found.check()
    except ValueError as error:
        raise NotKnown(str(error)) from None
    return found


_LAYERS = frozenset({"query", "key", "value", _BESIDE, _BY_HEAD})
_LAYERS |= frozenset({"out", "gate", "up", "down", _GATE_AND_UP})
_NORMS = frozenset({"before_attention", "before_gate", "after_attention", "after_down"})
_NORMS |= frozenset({"of_queries", "of_keys"})


def _parts(module: nn.Module, forms: Sequence[_Form], names: frozenset[str]) -> dict[str, Any]:
    """The children of a module, by what they are."""
    form = next((form for form in forms if set(form) == set(module._modules)), None)
    others = names_in_code(module) - names - set(module._modules)
    own = [*module._parameters, *module._buffers]
    told = [n for n, known in _SETTINGS.items() if getattr(module, n, known) != known]
    if form is None or others or own or told:
        has = sorted([*(module._modules if form is None else ()), *others, *own, *told])
        raise NotKnown(f"a {type(module).__name__} has {', '.join(has)}")
    return {part: module._modules[name] for name, part in form.items() if part != _NOTHING}


def _heads(
    layers: dict[str, Product], heads: int, channels: int
) -> tuple[dict[str, Product], dict[str, Places], int]:
    """The layers as `Block` has them, where heads stand in their results, and how many of keys."""
    if _GATE_AND_UP in layers:
        both = layers.pop(_GATE_AND_UP)
        half = both.rows // 2
        try:
            layers |= {"gate": both.part(0, half), "up": both.part(half, both.rows)}
        except ValueError as error:
            raise NotKnown(str(error)) from None
    attended = heads * channels
    if _BY_HEAD in layers:
        layers["query"] = layers.pop(_BY_HEAD)
        starts, steps, shared = (0, channels, 2 * channels), 3 * channels, heads
    elif _BESIDE in layers:
        layers["query"] = layers.pop(_BESIDE)
        shared = (layers["query"].rows - attended) // (2 * channels)
        starts, steps = (0, attended, attended + shared * channels), channels
    else:
        return layers, {}, layers["key"].rows // channels
    names = ("query", "key", "value")
    places = {n: Places("query", start, steps) for n, start in zip(names, starts, strict=True)}
    return layers, places, shared


def _product(layer: nn.Module | None) -> Product:
    product = layer.product() if isinstance(layer, Linear) and not layer._is_shared else None
    if product is None or not isinstance(layer, Linear) or layer.dtype not in FLOATS:
        raise NotKnown(f"a {type(layer).__name__} has no such kernel")
    bias = layer.own_tensors().get("bias")
    return product if bias is None else product.with_bias(bias)


FLOATS = (torch.float32, torch.bfloat16)  # of models whose decoders are called natively


def _activation(function: Any) -> Activation:
    x = torch.cat([torch.linspace(-8, 8, 65), torch.tensor([-1e4, 1e4])])
    if callable(function):
        with torch.no_grad():
            values = function(x)
            for activation, exact in _ACTIVATIONS.items():
                if torch.allclose(values, exact(x), rtol=1e-5, atol=1e-6):
                    return activation
    raise NotKnown(f"its activation is {function}")


def _norm(norm: Any) -> Norm:
    """A norm, by what it makes of some numbers."""
    weight: Tensor | None = norm._parameters.get("weight")
    bias: Tensor | None = norm._parameters.get("bias")
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.dtype not in FLOATS or not isinstance(eps, float):
        raise NotKnown(f"a {type(norm).__name__} is no norm of floats")
    own, x = weight.detach().float(), torch.linspace(-1.0, 3.0, weight.numel())
    moved = None if bias is None else bias.detach().float()
    rtol, atol = (1e-5, 1e-6) if weight.dtype == torch.float32 else (2e-2, 2e-2)
    with torch.no_grad():
        exact = norm(x[None].to(weight.dtype))[0].float()
        for centered in (False, True):
            y = x - x.mean() if centered else x
            plain = y * torch.rsqrt(y.square().mean() + eps)
            for more in (0.0, 1.0):
                values = plain * (own + more) + (0.0 if moved is None else moved)
                if torch.allclose(exact, values, rtol=rtol, atol=atol):
                    return Norm(own, eps, more, moved, centered)
    raise NotKnown(f"a {type(norm).__name__} computes something else")
