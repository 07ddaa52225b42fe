"""TinyNeuralNetwork's ``TFLiteConverter``: one object, whose ``convert()`` writes a .tflite file.

It stands for ``tinynn.converter``. Settings whose meaning Octavo shares are honoured; those about
the form of a file that Octavo chooses by itself have no effect; any other is an error.

Tested in tests/compat/test_tinynn.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import nn

from octavo.errors import PlanError
from octavo.flow.quantize import quantize
from octavo.graph.copying import copied
from octavo.graph.operators import arguments
from octavo.graph.qdq import QUANTIZE
from octavo.model.model import QuantizedModel
from octavo.model.tflite_file import TfliteFile, export_tflite
from octavo.quantization.qconfig import QConfig, QConfigMapping
from octavo.quantization.targets import dynamic_qconfig, weight_only_qconfig

_TARGET = "edge"  # of what is quantized here, and not by a quantizer
_CONVOLUTIONS = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
_MIDDLE = {"uint8": 128}  # the zero point of symmetric integers, where it is not 0

# Settings that are honoured, with their defaults.
_HONOURED: Mapping[str, Any] = {
    "fuse_quant_dequant": False,  # integers at the file's ends
    "strict_symmetric_check": False,  # refuse activations with a zero point
    "hybrid_quantization_from_float": False,  # a float model becomes a dynamic one
    "hybrid_per_channel": True,
    "hybrid_conv": True,  # whether weights of convolutions become integers too
}

# Settings that ask for one form, of several that Octavo's writer chooses from.
_WITHOUT_EFFECT = frozenset(
    """preserve_tensors optimize rewrite_quantizable map_bilstm_to_lstm unroll_lstm unroll_rnn
    group_conv_rewrite conv_transpose_with_bias legacy_gelu separated_rnn_gate_calc""".split()
)

# Settings whose meaning Octavo does not share: the values that ask for what it does anyway, and
# what that is.
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "quantize_target_type": (("int8",), "integers in the file are int8"),
    "hybrid_quantize_weight_type": ((None, "int8"), "integers in the file are int8"),
    "hybrid_asymmetric_inputs": (
        (True,),
        "LiteRT's dynamic layers round each row with a zero point",
    ),
    **dict.fromkeys(
        ("input_transpose", "output_transpose", "nchw_transpose"),
        ((None, True), "images have their channels last in the file"),
    ),
}


@dataclass(frozen=True)
class FloatSource:
    """The float model of one whose layers are integers one by one, which no graph holds."""

    model: nn.Module


class TFLiteConverter:
    """Writes what a quantizer returned as a .tflite file, see `octavo.export_tflite`.

    Args:
        model: what ``quantizer.convert`` returned, or `DynamicQuantizer`'s ``quantize``; one in
            float with ``hybrid_quantization_from_float=True``.
        dummy_input: a tensor, or several: the sizes of a file of a dynamic model. Others have the
            sizes of their quantizer's.
        tflite_path: the file; it is there whole or not at all.
        settings: TinyNN's own. ``fuse_quant_dequant``: the file takes and gives integers in place
            of floats. ``strict_symmetric_check``: activations with a zero point are an error.
            ``hybrid_quantization_from_float``: dynamic linear layers, of which ``hybrid_conv``
            makes weights of convolutions integers too, with a scale for each output channel or,
            ``hybrid_per_channel=False``, for all of a weight.

    Raises:
        PlanError: the model is in float, or a setting asks for what Octavo does not share.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        tflite_path: str | PathLike[str],
        **settings: Any,
    ) -> None:
        self.settings = _completed(settings)
        self.path = tflite_path
        self.model = self._quantized(model, dummy_input)
        if self.settings["strict_symmetric_check"]:
            _refuse_zero_points(self.model)

    def convert(self) -> TfliteFile:
        """Write the file; what is returned says its size, its operators and what is in float.

        Raises:
            ExportError, ArtifactError, MissingExtra: see `octavo.export_tflite`.
        """
        full_integer = self.settings["fuse_quant_dequant"]
        return export_tflite(self.model, self.path, full_integer=full_integer)

    def _quantized(self, model: nn.Module, dummy_input: Any) -> QuantizedModel:
        quantized = getattr(model, "octavo_model", None)
        if quantized is not None:
            return quantized  # type: ignore[no-any-return]
        source = vars(model).get(SOURCE)
        if source is not None:
            return _dynamic(source.model, dummy_input, per_channel=True, convolutions=False)
        if self.settings["hybrid_quantization_from_float"]:
            per_channel, convolutions = (
                bool(self.settings[name]) for name in ("hybrid_per_channel", "hybrid_conv")
            )
            return _dynamic(model, dummy_input, per_channel, convolutions)
        raise PlanError(
            f"TFLiteConverter got a {type(model).__name__} in float: give it what "
            "quantizer.convert(ready) returns, or say hybrid_quantization_from_float=True for "
            "dynamic layers"
        )


SOURCE = "octavo_source"  # where a model keeps its `FloatSource`


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of what they leave out.

    Raises:
        PlanError: one asks for something that Octavo does not share.
    """
    for name, value in settings.items():
        if name in _REFUSED and value not in _REFUSED[name][0]:
            raise PlanError(
                f"TFLiteConverter does not take {name}={value!r}: {_REFUSED[name][1]}; leave it out"
            )
        if name not in {*_HONOURED, *_WITHOUT_EFFECT, *_REFUSED}:
            raise PlanError(
                f"TFLiteConverter has no setting {name!r} here; it may have {sorted(_HONOURED)}, "
                "for all else use octavo.export_tflite"
            )
    return {**_HONOURED, **settings}


def _dynamic(
    model: nn.Module, dummy_input: Any, per_channel: bool, convolutions: bool
) -> QuantizedModel:
    """A float model with dynamic linear and recurrent layers, as one graph."""
    mapping = QConfigMapping().set_global(_scaled(dynamic_qconfig(_TARGET), per_channel))
    for kind in _CONVOLUTIONS if convolutions else ():
        mapping.set_object_type(kind, _scaled(weight_only_qconfig(), per_channel))
    return quantize(
        copied(model).eval(),
        dummy_input,
        qconfig=mapping,
        target=_TARGET,
        progress=False,
        scope="model",
    )


def _scaled(qconfig: QConfig, per_channel: bool) -> QConfig:
    """With a scale for each output channel of a weight, or for all of it."""
    assert qconfig.weight is not None
    scheme = replace(qconfig.weight.scheme, channel_axis=0 if per_channel else None)
    return replace(qconfig, weight=replace(qconfig.weight, scheme=scheme))


def _refuse_zero_points(q: QuantizedModel) -> None:
    """Raise where an activation has a zero point.

    Raises:
        PlanError: it names the first.
    """
    for node in q.graph.nodes:
        if node.op == QUANTIZE:
            given = arguments(node)
            dtype = str(given["dtype"]).removeprefix("torch.")
            if given["zero_point"] != _MIDDLE.get(dtype, 0):
                raise PlanError(
                    f"strict_symmetric_check=True, and {node.args[0].name!r} has the zero point "
                    f"{given['zero_point']} of {dtype}: say config={{'asymmetric': False}} to the "
                    "quantizer"
                )
