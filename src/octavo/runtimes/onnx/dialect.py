"""What a runtime wants to read, as data.

Tested in tests/runtimes/onnx/test_zoo.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """What a runtime wants to read; all dialects mean the same.

    Attributes:
        integer_bias: biases of quantized layers are int32 with the scale of the layer's sums.
        integer_products: linear layers that round their input at each call are written as products
            of integers; else as products of floats with integer weights.
        integer_recurrence: weights of recurrent layers are integers; else they are written as the
            floats that these stand for.
        loaded_as_floats: what makes floats of the weights of recurrent layers and of transposed
            convolutions, which run in float, is of operators that are run once, as the model is
            loaded; else it is DequantizeLinear, which is run at each call.
        states_left_out: recurrent layers that start with zeros have no initial states, which ONNX
            takes for zeros; else these are written.
        integer_gaps: transposed convolutions whose kernel is smaller than their stride, so that
            some results are sums of nothing, have integer weights; else floats.
        integer_blocks: transposed convolutions on integers that spread each pixel over a block of
            its own are written as convolutions of one pixel and moves.
        integer_multipliers: 3-D convolutions of one channel a group that make several of each have
            integer weights; else floats.
        means_of_four: a mean of three axes is written as one of four.
        unsigned: activations in int8 with a zero point are uint8 with another one.
        symmetric: those without a zero point stay int8 where all others are unsigned.
        blocks: linear layers and tables of which only the weights are integers are ONNX Runtime's
            own operators on blocks of 4 and 8 bits.
        rows_as_matrix: linear layers on integers with more axes than rows and columns are written
            as products of two matrices.
        late_rounding: what is only moved is rounded once: behind its moves where a product of
            activations makes it, else in front of them.
        integer_concatenations: what quantizes a concatenation stands in front of it, for each part,
            which then is one of integers; else behind it.
        clipped_hardsigmoid: it is written as a clip of a sum, else as ONNX's operator.
        quick_gelu: SiLU is ONNX Runtime's own operator, which goes through the values once.
        integer_clips: what clips values that are rounded, and does not what rounding does anyway,
            stands behind it, on the integers; else in front.
        fenced_summands: between a layer and the rounding of its result, which a sum reads, stands
            an activation that changes nothing.
        fenced_padding: between what is shifted and the zeros around it that an average counts
            stands a maximum that changes nothing.
        squeezes_batches: ``squeeze()`` of no axis in particular is written, and a batch of one is
            refused, of which it would take an axis more; else it has no ONNX form.
        dynamic_lstm: LSTM layers that round their input at each call are ONNX Runtime's own
            operator, which rounds what goes from step to step as well.
    """

    integer_bias: bool = True
    integer_products: bool = True
    integer_recurrence: bool = True
    loaded_as_floats: bool = False
    states_left_out: bool = False
    integer_gaps: bool = True
    integer_blocks: bool = False
    integer_multipliers: bool = True
    means_of_four: bool = False
    unsigned: bool = False
    symmetric: bool = True
    late_rounding: bool = False
    blocks: bool = False
    rows_as_matrix: bool = False
    integer_concatenations: bool = False
    squeezes_batches: bool = True
    clipped_hardsigmoid: bool = False
    quick_gelu: bool = False
    integer_clips: bool = False
    fenced_summands: bool = False
    fenced_padding: bool = False
    dynamic_lstm: bool = False
