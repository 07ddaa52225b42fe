"""A decoder as OpenVINO's IR: compressed weights, and a cache that the model keeps itself.

Inputs are those that openvino-genai expects: ``input_ids``, ``attention_mask``, ``position_ids``,
and ``beam_idx``, which says for each text whose cache it goes on with. Keys and values are
variables. Computations are float32 unless the runtime is told otherwise.

Tested in tests/model/language/graphs/test_folders.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import optional_import
from octavo.model.language.graphs.decoder import Block, DecoderParts, FloatWeight, Layer, Norm
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.runtimes.onnx.blocks import packed

with optional_import("openvino", "openvino", "write OpenVINO's models"):
    import openvino
    from openvino import opset13 as ops

MODEL = "openvino_model.xml"
_HIDDEN = -65504.0  # what is added where attention does not see, as a half float has it


def write_openvino(decoder: DecoderParts, folder: Path) -> None:
    """Write ``openvino_model.xml`` and ``openvino_model.bin``."""
    # Weights stay as they are; else they would be rounded to half floats.
    openvino.save_model(_Graph(decoder).model(), folder / MODEL, compress_to_fp16=False)


@dataclass
class _Graph:
    """Nodes that are read more than once, by name."""

    decoder: DecoderParts
    shared: dict[str, Any] = field(default_factory=dict)
    sinks: list[Any] = field(default_factory=list)

    def model(self) -> Any:
        decoder, i64 = self.decoder, openvino.Type.i64
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: ops.parameter([-1, -1], i64) for name in names}
        inputs["beam_idx"] = ops.parameter([-1], openvino.Type.i32)
        for name, one in inputs.items():
            one.set_friendly_name(name)
            one.output(0).set_names({name})
        self.shared |= inputs
        self.shared["batch"] = ops.gather(
            ops.shape_of(inputs["input_ids"], i64), _ints([0]), _ints(0)
        )
        self._positions()
        self._masks()
        hidden = ops.gather(
            self.weight(decoder.table), ops.convert(inputs["input_ids"], "i32"), _ints(0)
        )
        for number, block in enumerate(decoder.blocks):
            hidden = self.block(block, number, hidden)
        logits = self.linear(decoder.head or decoder.table, _normed(decoder.norm, hidden))
        result = ops.result(logits)
        result.output(0).set_names({"logits"})
        return openvino.Model([result], self.sinks, list(inputs.values()), "decoder")

    def _positions(self) -> None:
        """Sine and cosine of all positions, ``[batch, 1, new, channels]``."""
        frequencies = _floats(self.decoder.frequencies.reshape(1, 1, -1))
        places = ops.convert(ops.unsqueeze(self.shared["position_ids"], _ints(2)), "f32")
        half = ops.multiply(places, frequencies)
        angles = ops.unsqueeze(ops.concat([half, half], -1), _ints(1))
        for name, function in (("cosine", ops.cos), ("sine", ops.sin)):
            value = function(angles)
            if self.decoder.amplitude != 1.0:
                value = ops.multiply(value, _number(self.decoder.amplitude))
            self.shared[name] = value

    def _masks(self) -> None:
        """What is added to products of queries and keys, ``[batch, 1, new, all]``, by window."""
        total, new = (
            ops.gather(ops.shape_of(self.shared[name], "i64"), _ints(1), _ints(0))
            for name in ("attention_mask", "input_ids")
        )
        places = ops.unsqueeze(ops.range(_ints(0), total, _ints(1), "i64"), _ints([0, 1, 2]))
        own = ops.range(ops.subtract(total, new), total, _ints(1), "i64")
        own = ops.unsqueeze(own, _ints([0, 1, 3]))
        is_before = ops.less_equal(places, own)
        is_there = ops.not_equal(self.shared["attention_mask"], _ints(0))
        is_there = ops.unsqueeze(is_there, _ints([1, 2]))
        for window in {block.window for block in self.decoder.blocks}:
            if window is None:
                seen = ops.logical_and(is_before, is_there)
                mask = ops.select(seen, _number(0.0), _number(_HIDDEN))
            else:
                is_near = ops.greater(places, ops.add(own, _ints(-window)))
                mask = _in_window(is_near, is_before, is_there, total)
            self.shared[f"mask of {window}"] = mask

    def block(self, block: Block, number: int, hidden: Any) -> Any:
        normed = _normed(block.norms["input_layernorm"], hidden)
        query, key, value = (
            self.heads(block, normed, name, count)
            for name, count in (
                ("q", self.decoder.heads),
                ("k", self.decoder.shared_heads),
                ("v", self.decoder.shared_heads),
            )
        )
        key, value = (
            self.kept(number, part, x) for part, x in (("key", self.turned(key)), ("value", value))
        )
        attended = ops.scaled_dot_product_attention(
            self.turned(query),
            self.repeated(key),
            self.repeated(value),
            self.shared[f"mask of {block.window}"],
            _number(self.decoder.scale),
        )
        rows = ops.transpose(attended, _ints([0, 2, 1, 3]))
        width = self.decoder.heads * self.decoder.channels
        rows = ops.reshape(rows, _ints([0, 0, width]), special_zero=True)
        hidden = ops.add(hidden, self.linear(block.layers["o_proj"], rows))
        normed = _normed(block.norms["post_attention_layernorm"], hidden)
        gate, up = (self.linear(block.layers[name], normed) for name in ("gate_proj", "up_proj"))
        product = ops.multiply(self.activated(gate), up)
        return ops.add(hidden, self.linear(block.layers["down_proj"], product))

    def heads(self, block: Block, x: Any, name: str, count: int) -> Any:
        """A projection of heads, ``[batch, heads, new, channels]``."""
        channels = self.decoder.channels
        x = self.linear(block.layers[f"{name}_proj"], x)
        x = ops.reshape(x, _ints([0, 0, count, channels]), special_zero=True)
        norm = block.norms.get(f"{name}_norm")
        x = x if norm is None else _normed(norm, x)
        return ops.transpose(x, _ints([0, 2, 1, 3]))

    def turned(self, x: Any) -> Any:
        """By its positions."""
        half = self.decoder.channels // 2
        first, second = (
            ops.slice(x, _ints([start]), _ints([stop]), _ints([1]), _ints([3]))
            for start, stop in ((0, half), (half, 2**63 - 1))
        )
        other = ops.concat([ops.multiply(second, _number(-1.0)), first], -1)
        return ops.add(
            ops.multiply(x, self.shared["cosine"]), ops.multiply(other, self.shared["sine"])
        )

    def kept(self, number: int, part: str, x: Any) -> Any:
        """Those of the tokens before and these, which are kept."""
        heads, channels = self.decoder.shared_heads, self.decoder.channels
        name = f"past_key_values.{number}.{part}present.{number}.{part}"
        sizes = ops.concat([self.shared["batch"], _ints([heads]), _ints([0]), _ints([channels])], 0)
        nothing = ops.broadcast(_number(0.0), sizes)
        shape = openvino.PartialShape([-1, heads, -1, channels])
        before = ops.read_value(nothing, name, openvino.Type.f32, shape)
        before = ops.gather(before, self.shared["beam_idx"], _ints(0))
        grown = ops.concat([before, x], 2)
        self.sinks.append(ops.assign(grown, name))
        return grown

    def repeated(self, x: Any) -> Any:
        """Keys or values of a few heads for each head of queries."""
        heads, channels = self.decoder.shared_heads, self.decoder.channels
        times = self.decoder.heads // heads
        if times == 1:
            return x
        sizes = ops.shape_of(x, "i64")
        kept = ops.gather(sizes, _ints([0, 1]), _ints(0))
        rest = ops.gather(sizes, _ints([2, 3]), _ints(0))
        wanted = ops.concat([kept, _ints([times]), rest], 0)
        many = ops.broadcast(ops.unsqueeze(x, _ints(2)), wanted, "BIDIRECTIONAL")
        return ops.reshape(many, _ints([0, heads * times, -1, channels]), special_zero=True)

    def activated(self, x: Any) -> Any:
        if self.decoder.activation == "silu":
            return ops.swish(x)
        return ops.gelu(x, "tanh" if self.decoder.activation == "gelu_tanh" else "erf")

    def linear(self, layer: Layer, x: Any) -> Any:
        product = ops.matmul(x, self.weight(layer), False, True)
        bias = self.shared.get(f"{layer.path}.bias")
        return product if bias is None else ops.add(product, bias)

    def weight(self, layer: Layer) -> Any:
        """What a weight's integers stand for, ``[out, in]``."""
        if layer.path not in self.shared:
            weight = layer.weight()
            if weight.bias is not None:
                self.shared[f"{layer.path}.bias"] = _floats(weight.bias.reshape(1, 1, -1))
            self.shared[layer.path] = (
                _floats(weight.weight) if isinstance(weight, FloatWeight) else _decompressed(weight)
            )
        return self.shared[layer.path]


def _in_window(is_near: Any, is_before: Any, is_there: Any, total: Any) -> Any:
    """The mask of attention that slides a window.

    Runtimes that keep the cache in pages do without masks. They read the window out of the graph,
    if it is written in these operators and in this order, as that of gpt-oss is.
    """
    always = ops.constant(np.array(True))
    seen = ops.bitwise_and(ops.bitwise_and(always, is_near), is_before)
    seen = ops.bitwise_and(ops.bitwise_and(always, seen), is_there)
    seen = ops.broadcast(seen, ops.shape_of(seen, "i64"))
    mask = ops.select(seen, _number(0.0), _number(_HIDDEN))
    return ops.slice(mask, _ints([0]), ops.unsqueeze(total, _ints(0)), _ints([1]), _ints([3]))


def _decompressed(weight: LinearIntegers) -> Any:
    rows, columns = weight.integers.shape
    groups = weight.scale.shape[1]
    shape = [rows, columns] if groups == 1 else [rows, groups, columns // groups]
    of_group = [rows, 1] if groups == 1 else [rows, groups, 1]
    floats = ops.convert(_integers(weight, weight.integers, shape), "f32")
    if not weight.symmetric:
        zeros = _integers(weight, weight.zero_point.to(torch.uint8), of_group)
        floats = ops.subtract(floats, ops.convert(zeros, "f32"))
    floats = ops.multiply(floats, _floats(weight.scale.reshape(of_group)))
    return (
        floats if groups == 1 else ops.reshape(floats, _ints([rows, columns]), special_zero=False)
    )


def _integers(weight: LinearIntegers, integers: Tensor, shape: list[int]) -> Any:
    """Signed ones where they are symmetric; of four bits two to a byte, the first in the lower
    half.
    """
    kind = f"{'i' if weight.symmetric else 'u'}{weight.bits}"
    if weight.symmetric:
        integers = (integers.to(torch.int16) - weight.middle) & (2**weight.bits - 1)
        integers = integers.to(torch.uint8)
    flat = integers.reshape(-1)
    data = (packed(flat) if weight.bits == 4 else flat).numpy()
    tensor = openvino.Tensor(getattr(openvino.Type, kind), openvino.Shape(shape))
    tensor.data.view(np.uint8).reshape(-1)[:] = data
    return ops.constant(tensor)


def _normed(norm: Norm, x: Any) -> Any:
    mean = ops.reduce_mean(ops.power(x, _number(2.0)), _ints([-1]), keep_dims=True)
    size = ops.sqrt(ops.add(mean, _number(norm.eps)))
    normed = ops.multiply(x, ops.divide(_number(1.0), size))
    return ops.multiply(normed, _floats(norm.weight))


def _ints(values: Any) -> Any:
    return ops.constant(np.array(values, np.int64))


def _number(value: float) -> Any:
    return ops.constant(np.array(value, np.float32))


def _floats(values: Tensor) -> Any:
    return ops.constant(values.detach().to(torch.float32).contiguous().numpy())
