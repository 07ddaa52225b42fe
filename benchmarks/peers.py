"""The peers: what else quantizes a PyTorch model, and what else runs it, each by its own recipe.

Each library is imported by the function that needs it. What a function gives back is called with
the model's arguments; the model itself is left as it was.
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.runtimes.cpu import saturates

Batch = tuple[Tensor, ...]
Answer = Callable[..., Tensor]

# Engine, which is also the name of its qconfig mapping -> the CPUs that its mapping suits: that of
# x86 has seven bits for all activations, so that nothing saturates on a CPU without VNNI.
FX_CPUS = {"onednn": "VNNI", "x86": "AVX2"}


def fx(
    model: nn.Module, calibration: Iterable[Tensor], engine: str, *, reference: bool = False
) -> nn.Module:
    """``torch.ao.quantization``'s FX mode, with an engine's default qconfig mapping.

    It is deprecated, and still what the articles teach.

    Args:
        model: in evaluation mode; it is left as it was.
        calibration: one batch or more.
        engine: ``"onednn"`` or ``"x86"``; it stays set as torch's quantized engine.
        reference: float arithmetic between quantize and dequantize, exact on any CPU, in place of
            the engine's kernels.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

        torch.backends.quantized.engine = engine
        batches = list(calibration)
        prepared = quantize_fx.prepare_fx(
            copy.deepcopy(model), get_default_qconfig_mapping(engine), (batches[0],)
        )
        for batch in batches:
            prepared(batch)
        finish = quantize_fx.convert_to_reference_fx if reference else quantize_fx.convert_fx
        return finish(prepared).eval()


def fx_qat(model: nn.Module, example: Tensor, engine: str = "x86") -> nn.Module:
    """``prepare_qat_fx`` with an engine's default qconfig mapping for training.

    Args:
        model: in training mode; it is left as it was.
        example: a batch of images.
        engine: ``"onednn"`` or ``"x86"``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qat_qconfig_mapping, quantize_fx

        torch.backends.quantized.engine = engine
        return quantize_fx.prepare_qat_fx(
            copy.deepcopy(model).train(), get_default_qat_qconfig_mapping(engine), (example,)
        )


def dynamic(model: nn.Module) -> nn.Module:
    """``torch.ao.quantization.quantize_dynamic``: linear and recurrent layers, int8 weights.

    On the engine that torch chooses for x86, whose activations have seven bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        torch.backends.quantized.engine = "x86"
        return quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTM, nn.GRU}, torch.qint8)


def compiled(model: Callable[..., Any], args: Batch) -> Answer:
    """``torch.compile`` with frozen weights, which is what packs them for oneDNN."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.no_grad(), _quiet():
        answer = torch.compile(model)
        answer(*args)
    return answer


def pt2e(
    model: nn.Module, args: Batch, calibration: Sequence[Batch], *, reference: bool = False
) -> Answer:
    """torchao's PT2E with the quantizer for x86, compiled by Inductor.

    ``reference``: float arithmetic between quantize and dequantize, exact on any CPU.
    """
    with torch.no_grad(), _quiet():
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(
            x86.get_default_x86_inductor_quantization_config(reduce_range=saturates())
        )
        exported = torch.export.export(copy.deepcopy(model), args).module()
        # The quantizer stumbles over a layer whose result nobody reads, as an encoder's pooler.
        exported.graph.eliminate_dead_code()
        exported.recompile()
        prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
        for batch in calibration:
            prepared(*batch)
        converted = quantize_pt2e.convert_pt2e(prepared)
        return converted if reference else compiled(converted, args)


def onnx_file(model: nn.Module, args: Batch) -> bytes:
    """torch's ONNX export, as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return _exported(model, args, Path(folder)).read_bytes()


def onnxruntime_static_file(
    model: nn.Module, args: Batch, calibration: Sequence[Batch], method: str = "MinMax"
) -> bytes:
    """ONNX Runtime's static quantizer: QDQ, a scale for each channel of a weight.

    ``method`` finds ranges: ``"MinMax"``, ``"Entropy"`` or ``"Percentile"``.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        from onnxruntime import quantization

        file = _prepared(_exported(model, args, Path(folder)))
        names = _input_names(file)
        feeds = iter([_arrays(names, batch) for batch in calibration])

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, Any] | None:
                return next(feeds, None)

        result = file.with_name("quantized.onnx")
        quantization.quantize_static(
            file,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=saturates(),
            calibrate_method=quantization.CalibrationMethod[method],
        )
        return result.read_bytes()


def onnxruntime_dynamic_file(model: nn.Module, args: Batch) -> bytes:
    """ONNX Runtime's dynamic quantizer."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        from onnxruntime import quantization

        file = _prepared(_exported(model, args, Path(folder)))
        result = file.with_name("quantized.onnx")
        quantization.quantize_dynamic(
            file,
            result,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=saturates(),
        )
        return result.read_bytes()


def nncf_model(
    model: nn.Module,
    args: Batch,
    calibration: Sequence[Batch],
    *,
    transformer: bool,
    fast_bias_correction: bool = True,
) -> Any:
    """OpenVINO's own conversion, quantized by NNCF."""
    with _quiet():
        import nncf as library

        library.set_log_level(logging.ERROR)
        # By default this is for the first layer alone, which on these CPUs is not enough.
        overflow = library.OverflowFix.ENABLE if saturates() else library.OverflowFix.FIRST_LAYER
        return library.quantize(
            openvino_model(model, args),
            library.Dataset(list(calibration), lambda batch: [t.numpy() for t in batch]),
            subset_size=len(calibration),
            target_device=library.TargetDevice.CPU,
            model_type=library.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=fast_bias_correction,
            advanced_parameters=library.AdvancedQuantizationParameters(overflow_fix=overflow),
        )


def _exported(model: nn.Module, args: Batch, folder: Path) -> Path:
    """torch's own ONNX export: one file, weights inside."""
    file = folder / "float.onnx"
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(copy.deepcopy(model), args, dynamo=True, verbose=False)
        assert program is not None
        program.save(file)
    return file


def _prepared(file: Path) -> Path:
    """What ONNX Runtime asks for before it quantizes: shapes inferred, the graph optimized."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    result = file.with_name("prepared.onnx")
    quant_pre_process(file, result)
    return result


def session(file: Path | bytes, exact: bool = False) -> Answer:
    """Run by ONNX Runtime: ``exact`` as the file is written, without integer kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *args: torch.from_numpy(session.run(None, _arrays(names, args))[0])


def _input_names(file: Path) -> list[str]:
    import onnx

    return [given.name for given in onnx.load(file).graph.input]


def _arrays(names: Sequence[str], args: Batch) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in zip(names, args, strict=True)}


def openvino_model(model: nn.Module, args: Batch) -> Any:
    """OpenVINO's own conversion, of float weights."""
    import openvino

    with torch.no_grad(), _quiet():
        return openvino.convert_model(
            copy.deepcopy(model), example_input=args, input=[tuple(t.shape) for t in args]
        )


def openvino_file(model: Any, file: Path) -> None:
    """Write it, with the weights as they are."""
    import openvino

    openvino.save_model(model, file, compress_to_fp16=False)


def compiled_by_openvino(model: Any, precision: str | None = None) -> Answer:
    """Compiled for one call at a time.

    Args:
        model: OpenVINO's, or the path of a file.
        precision: of what is float, ``"f32"`` or ``"bf16"``; ``None`` is OpenVINO's default, which
            is bf16 where the CPU has it.
    """
    import openvino

    settings = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}

    chosen = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(model, "CPU", chosen | settings).create_infer_request()

    def answer(*args: Tensor) -> Tensor:
        arrays = [tensor.numpy() for tensor in args]
        result = request.infer(arrays, share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(result)

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries tell about their progress."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)
