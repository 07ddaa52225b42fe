"""Linear layers: on integers, on the integers of each call, and of which only the weights are any.

Tested in tests/runtimes/onnx/test_zoo.py and tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from typing import Any

import torch

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.qdq import DEQUANTIZE, DYNAMIC, QuantizedWeight, weight_behind
from octavo.runtimes.onnx import quantization, sizes
from octavo.runtimes.onnx.blocks import Blocks
from octavo.runtimes.onnx.blocks import linear as of_blocks
from octavo.runtimes.onnx.writer import Converter, Writer, dtype_name


def linear(w: Writer, node: Node) -> Any:
    """``x @ weight.T + bias``."""
    x, weight_ref, bias_ref = arguments(node).values()
    source = w.producer(x)
    integers = quantization.integers_of(w, weight_ref)
    if (
        w.dialect.integer_products
        and source is not None
        and source.op == DYNAMIC
        and integers is not None
        and integers.symmetric
        and "int16"
        not in (quantization.held_in(*source.args[1:3]), dtype_name(integers.integers.dtype))
    ):
        return _integer_product(w, node, source, integers)
    is_float = source is None or source.op not in (DEQUANTIZE, DYNAMIC)
    blocks = blocks_of(w, weight_ref) if is_float else None
    if blocks is not None:
        return of_blocks(w, node, blocks)
    # ONNX Runtime makes one kernel of weights of four bits and a product that is no Gemm.
    constant = weight_behind(w.graph, weight_ref)
    four_bits = constant is not None and constant.unpack is not None
    if w.rank(x) == 2 and not (is_float and four_bits):
        matrix = quantization.weight(w, weight_ref)
        return w.op(
            "Gemm", w.read(x), matrix, quantization.bias(w, x, weight_ref, bias_ref), transB=1
        )
    if w.dialect.rows_as_matrix and source is not None and source.op == DEQUANTIZE:
        return _of_rows(w, node)
    product = w.op("MatMul", w.read(x), quantization.weight(w, weight_ref, transposed=True))
    return product if bias_ref is None else w.op("Add", product, w.read(bias_ref))


def blocks_of(w: Writer, ref: Any) -> Blocks | None:
    """A constant matrix in blocks of integers, where the dialect has operators on them."""
    constant = weight_behind(w.graph, ref) if w.dialect.blocks else None
    return None if constant is None else Blocks.of(constant)


def _of_rows(w: Writer, node: Node) -> str:
    """A layer on rows in more axes than one, as a product of two matrices."""
    x, weight_ref, bias_ref = arguments(node).values()
    outputs, inputs = (size or 0 for size in w.meta(weight_ref).shape)
    rows = w.op("Reshape", w.read(x), w.ints([-1, inputs]))
    matrix, added = (
        quantization.weight(w, weight_ref),
        quantization.bias(w, x, weight_ref, bias_ref),
    )
    product = w.op("Gemm", rows, matrix, added, transB=1)
    return w.op("Reshape", product, sizes.of_rows(w, x, outputs))


def _integer_product(w: Writer, node: Node, source: Node, integers: QuantizedWeight) -> Any:
    """A product of integers and the scales behind it, as runtimes fuse them."""
    bias_ref = arguments(node)["bias"]
    q, scale, zero_point = quantization.rounded_dynamically(w, source)
    per_token = arguments(source)["per_token"]
    matrix = w.initializer(f"{integers.name}.transposed", integers.integers.t())
    scales = w.initializer(integers.reader.args[1].name, quantization.scales_of(integers)[0])
    if per_token:  # the runtimes know one zero point for all rows alone
        product = quantization.as_float(w, w.op("MatMulInteger", q, matrix))
        of_rows = integers.integers.sum(1, dtype=torch.float32)
        sums = w.initializer(f"{integers.name}.sums", of_rows)
        product = w.op("Sub", product, w.op("Mul", quantization.as_float(w, zero_point), sums))
    else:
        product = quantization.as_float(w, w.op("MatMulInteger", q, matrix, zero_point))
    product = w.op("Mul", product, w.op("Mul", scale, scales))
    return product if bias_ref is None else w.op("Add", product, w.read(bias_ref))


CONVERTERS: dict[str, Converter] = {"linear": linear}
