"""TinyNeuralNetwork's quantizers: one object, ``quantize()``, run it on data, ``convert()``.

They stand for ``tinynn.graph.quantization.quantizer``, and what else its examples import stands
here too: `TFLiteConverter` of ``tinynn.converter``, `model_tracer` of ``tinynn.graph.tracer``. No
source of a rewritten model is generated or executed: the model is captured as it is. What a config
may say stands in `tinynn_config`.

>>> quantizer = PostQuantizer(model, torch.rand(1, 3, 224, 224))  # doctest: +SKIP
>>> ready = quantizer.quantize()  # doctest: +SKIP
>>> for images, _ in loader: ready(images)  # doctest: +SKIP
>>> int8 = quantizer.convert(ready)  # doctest: +SKIP
>>> TFLiteConverter(int8, torch.rand(1, 3, 224, 224), "m.tflite").convert()  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from octavo.compat.quantization.quantize import convert, copy_prepared, quantize_dynamic
from octavo.compat.tinynn_config import completed, rules_of
from octavo.compat.tinynn_converter import SOURCE, FloatSource, TFLiteConverter
from octavo.errors import OctavoError, PlanError
from octavo.graph.copying import copied
from octavo.model.files.atomic import replacing

__all__ = ["DynamicQuantizer", "PostQuantizer", "QATQuantizer", "TFLiteConverter", "model_tracer"]


@contextmanager
def model_tracer() -> Iterator[None]:
    """Does nothing: the model is captured as it is, wherever it was made."""
    yield


# Methods of TinyNN's that there are none of here.
_METHODS: Mapping[str, str] = {
    "error_analysis": "octavo.layer_errors(model, q, data) tells each layer's error",
    "restore_to_original": "the float model is as it was: quantize() works on a copy",
    "optimize_conv_bn_fusion": "batch norms are folded when the model is captured",
    "prepare_onnx_export": "octavo.export_onnx(quantizer.convert(ready).octavo_model, path)",
    "freeze_weights": "weights are rounded once, in convert",
}


class _Quantizer:
    """What all three have.

    Args:
        model: any module that ``torch.export`` takes; it is left as it was.
        dummy_input: a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        work_dir: a folder for ``<model>_q_plan.json``, `octavo.Plan` as JSON: what is quantized,
            how, and why. Nothing is written without it, and nothing is ever read from it.
        config: see `octavo.compat.tinynn_config`.

    Raises:
        PlanError: the config asks for something that Octavo does not share.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        work_dir: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        self.model = model
        self.dummy_input = dummy_input
        self.work_dir = work_dir
        self.config = self._completed(config or {})

    def _completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with its defaults."""
        return completed(config)

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS:
            raise OctavoError(f"octavo.compat.tinynn has no {name}: {_METHODS[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def backend(self) -> str:
        """TinyNN's name of the place where the model will run."""
        return str(self.config["backend"])

    def quantize(self) -> nn.Module:
        """The model, ready for data."""
        raise NotImplementedError

    def convert(self, q_model: nn.Module, backend: str = "tflite") -> nn.Module:
        """The int8 model.

        Args:
            q_model: from `quantize`, after it has seen data.
            backend: ``"tflite"`` and ``"pytorch"`` mean the same here.

        Raises:
            PlanError: the model is not from `quantize`.
        """
        if backend not in ("tflite", "pytorch"):
            raise PlanError(
                f"backend is {backend!r}; convert(q_model) gives a model that runs in int8, and "
                "octavo.export_onnx writes its octavo_model for other runtimes"
            )
        return convert(q_model)


class QATQuantizer(_Quantizer):
    """Quantization-aware training: train what `quantize` returns, then `convert` it.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> quantizer = QATQuantizer(net, torch.rand(2, 3, 8, 8), config={"per_tensor": False})
        >>> training = quantizer.quantize()
        >>> optimizer = torch.optim.SGD(training.parameters(), 0.01)
        >>> training(torch.rand(4, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> quantizer.convert(training)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 4, 6, 6])
    """

    _trains = True

    def quantize(self) -> nn.Module:
        """A copy of the model, captured: one that trains, its values rounded as they will be, or
        that of `PostQuantizer`, which observes what it is called on.

        Raises:
            CaptureError: the model cannot be exported.
            PlanError: the config does not fit the model.
        """
        rules = rules_of(self.config, self.model, self._trains)
        model = copy_prepared(self.model, rules, self._trains, self.dummy_input)
        plan = model._octavo.plan
        if self.work_dir is not None and plan is not None:
            name = f"{type(self.model).__name__.lower()}_q_plan.json"
            with replacing(Path(self.work_dir, name)) as file:
                file.write_text(plan.to_json(), encoding="utf-8")
        return model  # type: ignore[no-any-return]


class PostQuantizer(QATQuantizer):
    """Post-training quantization: call what `quantize` returns on data, then `convert` it."""

    _trains = False


class DynamicQuantizer(_Quantizer):
    """Dynamic quantization: `quantize` returns the int8 model, which finds scales at each call."""

    def _completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("asymmetric", False) or not config.get("per_tensor", True):
            raise PlanError(
                "DynamicQuantizer takes asymmetric=False and per_tensor=True alone; for other "
                "schemes octavo.quantize(model, dummy_input, qconfig=octavo.dynamic_qconfig())"
            )
        return super()._completed(config)

    def quantize(self) -> nn.Module:
        """A copy of the model whose linear and recurrent layers hold integers."""
        source = copied(self.model).eval()
        made = quantize_dynamic(source)
        vars(made)[SOURCE] = FloatSource(source)  # for TFLiteConverter; no module of the model
        return made

    def convert(self, q_model: nn.Module, backend: str = "tflite") -> nn.Module:
        """The model itself: it runs in int8 already."""
        return q_model


def __getattr__(name: str) -> Any:
    if name == "BF16Quantizer":
        raise OctavoError("octavo.compat.tinynn has no BF16Quantizer: use model.bfloat16()")
    if name == "DeQuantizer":
        raise OctavoError("octavo.compat.tinynn has no DeQuantizer: the float model is as it was")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
