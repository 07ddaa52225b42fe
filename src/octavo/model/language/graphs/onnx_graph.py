"""A decoder as ONNX, with ONNX Runtime's operators on integer weights and on a cache.

``MatMulNBits`` for linear layers, ``GatherBlockQuantized`` for tables, ``GroupQueryAttention`` for
attention with positions and cache: the operators, inputs and outputs that onnxruntime-genai
expects. Computations are float32; weights are in a file beside the graph's.

Tested in tests/model/language/graphs/test_folders.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ExportError, optional_import
from octavo.model.language.graphs.decoder import Block, DecoderParts, FloatWeight, Layer, Norm
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.runtimes.onnx.blocks import Blocks, packed, size_of_blocks
from octavo.runtimes.onnx.writer import DTYPES, MICROSOFT, dtype_name

with optional_import("onnx", "onnx", "write ONNX models"):
    import onnx
    from onnx import TensorProto, helper

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
OPSET, IR_VERSION = 21, 10
# As ONNX Runtime counts the accuracy of `MatMulNBits`: on floats, and on inputs in eight bits.
FLOATS, INTEGERS = 1, 4
_ALIGNED = 64  # bytes, so that weights can be read where they are mapped
_INSIDE = 64  # values of a tensor that stands in the graph itself


def write_onnx(decoder: DecoderParts, folder: Path) -> None:
    """Write ``model.onnx`` and ``model.onnx.data``.

    Raises:
        ExportError: a layer has no form there.
    """
    with open(folder / WEIGHTS, "wb") as file:
        graph = _Graph(file)
        _decoder(graph, decoder)
    onnx.save(graph.model(decoder), folder / MODEL)


@contextmanager
def in_floats(folder: Path) -> Iterator[Path]:
    """A file of the same graph whose products are those of floats; it is removed at the end."""
    model, path = onnx.load(folder / MODEL, load_external_data=False), folder / "floats.onnx"
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = FLOATS
    onnx.save(model, path)
    try:
        yield path
    finally:
        path.unlink()


@dataclass
class _Graph:
    """Nodes, and tensors that are written to a file as they come."""

    file: BufferedWriter
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    def op(
        self, name: str, kind: str, *inputs: str, domain: str = "", outputs: Any = (), **how: Any
    ) -> str:
        """Add a node; its first output is returned."""
        made = list(outputs) or [name]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name, domain=domain, **how))
        return str(made[0])

    def tensor(self, name: str, tensor: Tensor) -> str:
        """A constant; its name is returned."""
        if name not in self.tensors:
            values, kind = tensor.detach().contiguous(), DTYPES[dtype_name(tensor.dtype)]
            if values.numel() <= _INSIDE:
                self.tensors[name] = helper.make_tensor(
                    name, kind, values.shape, values.numpy().tobytes(), raw=True
                )
            else:
                self.tensors[name] = self._outside(name, kind, values)
        return name

    def _outside(self, name: str, kind: int, values: Tensor) -> Any:
        self.file.write(bytes(-self.file.tell() % _ALIGNED))
        proto = TensorProto(name=name, data_type=kind, dims=list(values.shape))
        proto.data_location = TensorProto.EXTERNAL
        data = values.numpy().data.cast("B")
        where = {"location": WEIGHTS, "offset": self.file.tell(), "length": data.nbytes}
        for key, value in where.items():
            proto.external_data.add(key=key, value=str(value))
        self.file.write(data)
        return proto

    def model(self, decoder: DecoderParts) -> Any:
        """The whole."""
        kept = ["batch", decoder.shared_heads, "past", decoder.channels]
        grown = ["batch", decoder.shared_heads, "total", decoder.channels]
        inputs: list[tuple[str, int, list[Any]]]
        inputs = [("input_ids", TensorProto.INT64, ["batch", "new"])]
        inputs.append(("attention_mask", TensorProto.INT64, ["batch", "total"]))
        outputs: list[tuple[str, int, list[Any]]]
        outputs = [("logits", TensorProto.FLOAT, ["batch", "new", decoder.tokens])]
        for number in range(len(decoder.blocks)):
            for part in ("key", "value"):
                inputs.append((f"past_key_values.{number}.{part}", TensorProto.FLOAT, kept))
                outputs.append((f"present.{number}.{part}", TensorProto.FLOAT, grown))
        first, last = (
            [helper.make_tensor_value_info(*one) for one in end] for end in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, "decoder", first, last, list(self.tensors.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="octavo"
        )


def _decoder(g: _Graph, decoder: DecoderParts) -> None:
    last = g.tensor("one", torch.tensor([1]))
    counts = g.op("tokens_seen", "ReduceSum", "attention_mask", last, keepdims=0)
    before = g.op("tokens_before", "Sub", counts, last)
    g.op("last_tokens", "Cast", before, to=TensorProto.INT32)
    total = g.op("all_tokens", "Shape", "attention_mask", start=1, end=2)
    total = g.op("all_tokens/number", "Squeeze", total)
    g.op("total", "Cast", total, to=TensorProto.INT32)
    cosine, sine = decoder.rotations()
    g.tensor("cosine", cosine)
    g.tensor("sine", sine)
    hidden, added = _table(g, decoder.table), ""
    for number, block in enumerate(decoder.blocks):
        hidden, added = _block(g, decoder, block, number, hidden, added)
    _, normed = _normed(g, "model.norm", decoder.norm, hidden, added)
    head = decoder.head or decoder.table
    g.op("logits", "Identity", _linear(g, head, normed, "lm_head"))


def _block(
    g: _Graph, decoder: DecoderParts, block: Block, number: int, hidden: str, added: str
) -> tuple[str, str]:
    """The sum in front of the last addition, and what is to be added."""
    at = f"model.layers.{number}"
    hidden, normed = _normed(
        g, f"{at}.input_layernorm", block.norms["input_layernorm"], hidden, added
    )
    query, key, value = (
        _linear(g, block.layers[name], normed) for name in ("q_proj", "k_proj", "v_proj")
    )
    if "q_norm" in block.norms:
        query, key = (
            _of_heads(g, f"{at}.self_attn.{name}", block.norms[name], x, decoder.channels)
            for name, x in (("q_norm", query), ("k_norm", key))
        )
    attended = g.op(
        f"{at}.self_attn",
        "GroupQueryAttention",
        query,
        key,
        value,
        f"past_key_values.{number}.key",
        f"past_key_values.{number}.value",
        "last_tokens",
        "total",
        "cosine",
        "sine",
        domain=MICROSOFT,
        outputs=(f"{at}.self_attn", f"present.{number}.key", f"present.{number}.value"),
        num_heads=decoder.heads,
        kv_num_heads=decoder.shared_heads,
        scale=decoder.scale,
        do_rotary=1,
        local_window_size=-1 if block.window is None else block.window,
    )
    out = _linear(g, block.layers["o_proj"], attended)
    name = "post_attention_layernorm"
    hidden, normed = _normed(g, f"{at}.{name}", block.norms[name], hidden, out)
    gate = _linear(g, block.layers["gate_proj"], normed)
    up = _linear(g, block.layers["up_proj"], normed)
    product = g.op(f"{at}.mlp.product", "Mul", _activated(g, f"{at}.mlp", gate, decoder), up)
    return hidden, _linear(g, block.layers["down_proj"], product)


def _activated(g: _Graph, at: str, x: str, decoder: DecoderParts) -> str:
    if decoder.activation == "silu":
        return g.op(f"{at}.act_fn", "Mul", x, g.op(f"{at}.act_fn/Sigmoid", "Sigmoid", x))
    form = "tanh" if decoder.activation == "gelu_tanh" else "none"
    return g.op(f"{at}.act_fn", "Gelu", x, approximate=form)


def _normed(g: _Graph, name: str, norm: Norm, x: str, added: str) -> tuple[str, str]:
    """The sum of two, and its norm."""
    weight = g.tensor(f"{name}.weight", norm.weight)
    if not added:
        return x, g.op(name, "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=norm.eps)
    total = f"{name}.sum"
    normed = g.op(
        name,
        "SkipSimplifiedLayerNormalization",
        x,
        added,
        weight,
        domain=MICROSOFT,
        outputs=(name, "", "", total),
        epsilon=norm.eps,
    )
    return total, normed


def _of_heads(g: _Graph, name: str, norm: Norm, x: str, channels: int) -> str:
    """Each head's channels by their own norm."""
    apart = g.tensor(f"[0, 0, -1, {channels}]", torch.tensor([0, 0, -1, channels]))
    heads = g.op(f"{name}.heads", "Reshape", x, apart)
    weight = g.tensor(f"{name}.weight", norm.weight)
    normed = g.op(
        f"{name}.normed", "SimplifiedLayerNormalization", heads, weight, axis=-1, epsilon=norm.eps
    )
    return g.op(name, "Reshape", normed, g.tensor("[0, 0, -1]", torch.tensor([0, 0, -1])))


def _linear(g: _Graph, layer: Layer, x: str, name: str = "") -> str:
    weight, name = layer.weight(), name or layer.path
    bias = "" if weight.bias is None else g.tensor(f"{layer.path}.bias", weight.bias)
    if isinstance(weight, FloatWeight):
        known = f"{layer.path}.weight"
        turned = g.op(f"{name}.turned", "Transpose", g.tensor(known, weight.weight), perm=[1, 0])
        product = g.op(f"{name}.product" if bias else name, "MatMul", x, turned)
        return g.op(name, "Add", product, bias) if bias else product
    blocks = _blocks(layer, weight)
    rows, count, _ = blocks.integers.shape
    scales, zeros = _parameters(g, layer, blocks)
    given = [x, _integers(g, layer, blocks, name), scales, zeros, "", bias]
    while not given[-1]:
        given.pop()
    return g.op(
        name,
        "MatMulNBits",
        *given,
        domain=MICROSOFT,
        K=count * blocks.size,
        N=rows,
        bits=blocks.bits,
        block_size=blocks.size,
        accuracy_level=INTEGERS,
    )


def _table(g: _Graph, layer: Layer) -> str:
    weight = layer.weight()
    if isinstance(weight, FloatWeight):
        table = g.tensor(f"{layer.path}.weight", weight.weight)
        return g.op(layer.path, "Gather", table, "input_ids")
    blocks = _blocks(layer, weight)
    scales, zeros = _parameters(g, layer, blocks)
    name = g.tensor(f"{layer.path}.weight", blocks.integers.flatten(1))
    given = [name, "input_ids", scales, zeros] if zeros else [name, "input_ids", scales]
    return g.op(
        layer.path,
        "GatherBlockQuantized",
        *given,
        domain=MICROSOFT,
        bits=blocks.bits,
        gather_axis=0,
        quantize_axis=1,
        block_size=blocks.size,
    )


def _integers(g: _Graph, layer: Layer, blocks: Blocks, name: str) -> str:
    """As the product reads them: of a table that is the head, too, the table's in that shape."""
    known = f"{layer.path}.weight"
    if known not in g.tensors:
        return g.tensor(known, blocks.integers)
    shape = g.tensor(f"{name}.shape", torch.tensor(blocks.integers.shape))
    return g.op(f"{name}.blocks", "Reshape", known, shape)


def _parameters(g: _Graph, layer: Layer, blocks: Blocks) -> tuple[str, str]:
    scales = g.tensor(f"{layer.path}.weight_scale", blocks.scales)
    zeros = blocks.zero_points
    if zeros is None:
        return scales, ""
    stored = packed(zeros) if blocks.bits == 4 else zeros
    return scales, g.tensor(f"{layer.path}.weight_zero_point", stored)


def _blocks(layer: Layer, weight: LinearIntegers) -> Blocks:
    if size_of_blocks(weight.group_size) is None:
        raise ExportError(
            f"{layer.path!r} has groups of {weight.group_size} inputs: ONNX Runtime's kernels take "
            "blocks of 16, 32, 64, 128 or 256; quantize with a group size that these divide"
        )
    return Blocks.of_groups(
        layer.path, weight.bits, weight.integers, weight.scale, weight.zero_point
    )
