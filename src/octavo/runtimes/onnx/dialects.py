"""What each runtime wants to read, as data."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.runtimes.onnx.writer import Dialect

DIALECTS: Mapping[str, Dialect] = {
    # Its kernels for integers take int32 biases, it fuses products of integers with what stands
    # around them, and it has an operator for an LSTM on integers.
    "onnxruntime": Dialect(integer_bias=True, integer_products=True, dynamic_lstm=True),
    # Its kernels add float biases, its own dynamic quantization starts from float products, and its
    # recurrent layers want constant weights, which it does not make of integers in every model. It
    # computes concatenations and attention of int8 tensors wrongly, gaps, and what it fuses behind
    # a mean of three axes. It does not hold callers to a guard of squeeze().
    "openvino": Dialect(
        integer_bias=False,
        integer_products=False,
        integer_recurrence=False,
        integer_gaps=False,
        means_of_four=True,
        unsigned=True,
        squeezes_batches=False,
    ),
}
