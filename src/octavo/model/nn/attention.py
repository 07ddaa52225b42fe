"""`MultiheadAttention`: torch's own attention, with projections in integers.

The float module's kernels read its weights without calling a layer. Here each projection is a
`Linear` of its own, and between them stands scaled dot product attention in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import ArtifactError, InputError
from octavo.graph.graph import TensorMeta
from octavo.model.nn.description import Description
from octavo.model.nn.float_layers import linear_of, taking_place
from octavo.model.nn.linear import Linear
from octavo.model.nn.quantized_module import QuantizedModule
from octavo.quantization.qconfig import QConfig

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not

_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
_EXTRA = ("bias_k", "bias_v")


class MultiheadAttention(QuantizedModule, floats=nn.MultiheadAttention, operator="linear"):
    """A quantized ``nn.MultiheadAttention``; arguments and results are those of the float one.

    Its state dict has the four projections as layers: ``q_proj``, ``k_proj``, ``v_proj`` and
    ``out_proj``. It has no fast path and takes no nested tensors.

    Args:
        description, tensors: as for `QuantizedModule`.
        parts: the four projections, by name.

    Example:
        >>> import octavo
        >>> attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
        >>> q = MultiheadAttention.from_float(attention, octavo.dynamic_qconfig())
        >>> x = torch.rand(2, 5, 16)
        >>> q(x, x, x, need_weights=False)[0].shape
        torch.Size([2, 5, 16])
    """

    settings = (
        *("embed_dim", "num_heads", "kdim", "vdim"),
        *("add_zero_attn", "add_bias_kv", "batch_first"),
    )

    embed_dim: int
    num_heads: int
    kdim: int
    vdim: int
    add_zero_attn: bool
    batch_first: bool
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    add_bias_kv: bool

    # What torch's transformer layers ask of the float one before they take their fast path.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self, description: Description, tensors: Mapping[str, Tensor], parts: Mapping[str, Linear]
    ) -> None:
        super().__init__(description, tensors)
        for name, part in parts.items():
            self.add_module(name, part)

    @classmethod
    def from_float(cls, layer: nn.Module, qconfig: QConfig, target: str = "x86") -> Self:
        obstacle = cls.obstacle(layer, qconfig)
        if obstacle is not None:
            return super().from_float(layer, qconfig, target)  # which says so
        assert isinstance(layer, nn.MultiheadAttention)
        parts = {
            name: Linear.from_float(part, qconfig, target) for name, part in _projections(layer)
        }
        dtype = str(layer.out_proj.weight.dtype).removeprefix("torch.")
        activation = parts["q_proj"].activation
        description = Description(cls.__name__, cls.settings_of(layer), {}, activation, dtype)
        extra = {name: getattr(layer, name) for name in _EXTRA}
        tensors = {name: t.detach().float().clone() for name, t in extra.items() if t is not None}
        module = cls(description, tensors, parts)
        return taking_place(module, layer)

    @classmethod
    def settings_of(cls, layer: nn.Module) -> dict[str, Any]:
        names = (name for name in cls.settings if name != "add_bias_kv")
        return {name: getattr(layer, name) for name in names} | {
            "add_bias_kv": layer.bias_k is not None
        }

    @classmethod
    def parameter_shapes(cls, description: Description) -> dict[str, tuple[int, ...]]:
        """Of the extra key and value; its projections have their own."""
        shape = (1, 1, int(description.settings["embed_dim"]))
        return dict.fromkeys(_EXTRA, shape) if description.settings["add_bias_kv"] else {}

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Self:
        known = Description.from_dict(description, cls.__name__, cls.settings)
        inner = description.get("parts")
        if not isinstance(inner, dict) or set(inner) != set(_PARTS):
            raise ArtifactError(f"a {cls.__name__} has the parts {', '.join(_PARTS)}")
        parts = {}
        for name in _PARTS:
            own = {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{name}.")
            }
            parts[name] = Linear.from_description(inner[name], own)
        extra = {key: tensor for key, tensor in tensors.items() if "." not in key}
        known.check(cls.metas, extra)
        module = cls(known, extra, parts)
        module._check_sizes()
        return module

    def tensors(self) -> dict[str, Tensor]:
        inner = {
            f"{name}.{key}": tensor
            for name in _PARTS
            for key, tensor in getattr(self, name).tensors().items()
        }
        return self.own_tensors() | inner

    def float_shapes(self) -> dict[str, tuple[int, ...]]:
        settings = self.description.settings
        bias = "bias" in self.q_proj.own_tensors()
        layer = nn.MultiheadAttention(**settings, bias=bias, device="meta")
        return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}

    def describe(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).describe() for name in _PARTS}
        return super().describe() | {"parts": parts}

    def _check_sizes(self) -> None:
        """Refuse projections that do not fit together.

        Raises:
            ArtifactError: they do not.
        """
        sizes = {"q_proj": self.embed_dim, "k_proj": self.kdim, "v_proj": self.vdim}
        sizes["out_proj"] = self.embed_dim
        fits = all(
            (getattr(self, name).in_features, getattr(self, name).out_features)
            == (size, self.embed_dim)
            for name, size in sizes.items()
        )
        heads = self.num_heads
        if not fits or not isinstance(heads, int) or heads < 1 or self.embed_dim % heads:
            raise ArtifactError(
                f"projections of {sizes} that do not fit {self.embed_dim} channels in {heads} heads"
            )

    @property
    def device(self) -> torch.device:
        return self.out_proj.device

    def compute(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.is_nested or query.dim() not in (2, 3):
            raise InputError(
                "attention takes [batch, length, channels] or [length, channels], and no nested "
                "tensors: give a key_padding_mask"
            )
        if is_causal and attn_mask is None:
            raise InputError("is_causal=True says what attn_mask is: give the mask too")
        batched = query.dim() == 3
        given = [x if batched else x.unsqueeze(1) for x in (query, key, value)]
        if not (batched and self.batch_first):
            given = [x.transpose(0, 1) for x in given]
        q, k, v = (
            project(x).float()
            for project, x in zip((self.q_proj, self.k_proj, self.v_proj), given, strict=True)
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        k, v, mask = self._with_extra(k, v, mask)
        q, k, v = (self._in_heads(x) for x in (q, k, v))
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = (weights if batched else weights.squeeze(0)).to(query.dtype)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        result = self.out_proj(mixed.transpose(1, 2).flatten(2)).to(query.dtype)
        if not batched:
            return result.squeeze(0), weights
        return result if self.batch_first else result.transpose(0, 1), weights

    def _in_heads(self, x: Tensor) -> Tensor:
        """From ``[batch, length, channels]`` to ``[batch, heads, length, channels / heads]``."""
        heads = self.num_heads
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores ``[batch, heads, targets, sources]``.

        Raises:
            InputError: a mask is of another shape or dtype.
        """
        (batch, targets), sources = q.shape[:2], k.shape[1]
        total: Tensor | None = None
        if mask is not None:
            plain, by_head = (targets, sources), (batch * self.num_heads, targets, sources)
            total = _added("attn_mask", mask, plain, by_head)
            if total.dim() == 3:
                total = total.reshape(-1, self.num_heads, *total.shape[1:])
        if padding is not None:
            padding = padding.reshape(1, -1) if batch == 1 else padding  # one axis without a batch
            padded = _added("key_padding_mask", padding, (batch, sources))
            padded = padded.reshape(batch, 1, 1, sources)
            total = padded if total is None else total + padded
        return total

    def _with_extra(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask with the learned key and value behind them, and with zeros."""
        added = 0
        own = self.own_tensors()
        if "bias_k" in own:
            extra = ((k, own["bias_k"]), (v, own["bias_v"]))
            k, v = (torch.cat([x, bias.expand(len(x), 1, -1)], 1) for x, bias in extra)
            added += 1
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(len(x), 1, x.shape[2])], 1) for x in (k, v))
            added += 1
        return k, v, None if mask is None else F.pad(mask, (0, added))

    def float_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"

    def extra_repr(self) -> str:
        return self.float_repr()


def _added(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """A mask as numbers to add; a boolean one is true where nothing is seen.

    Raises:
        InputError: it is neither boolean nor float, or of none of the shapes.
    """
    is_mask = mask.dtype == torch.bool or mask.is_floating_point()
    if not is_mask or tuple(mask.shape) not in shapes:
        raise InputError(
            f"{name} is {TensorMeta.of(mask)}; give booleans or floats of shape "
            f"{' or '.join(str(list(shape)) for shape in shapes)}"
        )
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(mask, float("-inf"))


def _projections(layer: nn.MultiheadAttention) -> Iterator[tuple[str, nn.Linear]]:
    """The four projections as linear layers."""
    if layer._qkv_same_embed_dim:
        weights = list(layer.in_proj_weight.chunk(3))
    else:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    bias = layer.in_proj_bias
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    for name, weight, own in zip(_PARTS, weights, biases, strict=False):
        yield name, linear_of(weight, own)
    yield "out_proj", linear_of(layer.out_proj.weight, layer.out_proj.bias)
