"""Who takes part in `speed`: Octavo's runtimes, and what else runs a PyTorch model.

Each is at its own best setting: torch gets images in channels-last order, what has static shapes
gets them, and what is compiled is compiled with frozen weights.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import peers
from benchmarks.contest import Call, Maker
from benchmarks.kept import Kept
from benchmarks.peers import Answer, Batch
from benchmarks.workloads import Model, Workload
from octavo.runtimes import RUNTIMES, has_own_threads
from octavo.runtimes.cpu import saturates

FP32 = "torch fp32"
BF16 = ("torch bf16", "torch bf16, compiled", "OpenVINO bf16")
TORCH_AO = ("torch.ao FX", "torch.ao dynamic")
ORT_INT8, NNCF_INT8 = "ONNX Runtime, its own int8", "OpenVINO, NNCF's int8"
FASTEST = "fastest"
OURS = ("torch", "onnxruntime", "openvino", FASTEST)
SHARE_OF_ONE_RUNTIME = 0.3  # of the seconds of tuning: for its sizes, and what is tried next
# Of what stays float: bfloat16 where the CPU has it, which is OpenVINO's own default for the peers.
PRECISION = {"openvino": "auto"}
# These take minutes to build, or are what the others are compared with on other axes.
MORE_RUNTIMES = tuple(name for name in RUNTIMES if name not in ("reference", *OURS))


def contenders(
    work: Workload, model: Model, kept: Kept, tune_s: float, columns: dict[str, dict[str, Any]]
) -> dict[str, Callable[[], Call]]:
    """name -> what makes the call to time; the first is the float reference.

    Args:
        work, model: the network.
        kept: the files of what peers build.
        tune_s: seconds of tuning for Octavo's fastest, and a share for one runtime; 0 is no tuning.
        columns: are filled with what ours notes of itself.
    """
    net, args, recipe = work.net, work.args, model.recipe
    last = tuple(map(channels_last, args))
    run_half, args_half = in_bf16(net, last)
    makers: dict[str, Callable[[], Call]] = {FP32: lambda: bound(copied(net), last)}
    for mode in model.modes:
        for runtime in OURS if mode == model.modes[0] else OURS[:-1]:
            name = title(runtime, mode, model)
            makers[name] = partial(ours, work, runtime, mode, tune_s, columns.setdefault(name, {}))
    makers |= {
        BF16[0]: lambda: bound(run_half(), args_half),
        BF16[2]: lambda: bound(
            peers.compiled_by_openvino(kept.file("float.xml", converted(work)), "bf16"), args
        ),
        ORT_INT8: lambda: bound(
            peers.session(kept.file("quantized.onnx", by_onnxruntime(work, model))), args
        ),
        NNCF_INT8: lambda: bound(
            peers.compiled_by_openvino(kept.file("quantized.xml", by_nncf(work, model))), args
        ),
    }
    if recipe.torch_ao == "FX":
        images = [batch[0] for batch in work.calibration]
        makers[TORCH_AO[0]] = lambda: bound(peers.fx(net, images, "onednn"), last)
    else:
        makers[TORCH_AO[1]] = lambda: bound(peers.dynamic(net), last)
    makers[BF16[1]] = lambda: bound(peers.compiled(run_half(), args_half), args_half)
    return makers


def more_contenders(
    work: Workload, model: Model, kept: Kept, columns: dict[str, dict[str, Any]]
) -> dict[str, Callable[[], Call]]:
    """Those that `contenders` leaves out: other floats, and what takes minutes to compile."""
    net, args, mode = work.net, work.args, model.modes[0]
    last = tuple(map(channels_last, args))
    makers: dict[str, Callable[[], Call]] = {
        "torch fp32, compiled": lambda: bound(peers.compiled(copied(net), last), last),
        "torchao PT2E, compiled": lambda: bound(peers.pt2e(net, last, work.calibration), last),
        "ONNX Runtime fp32": lambda: bound(peers.session(peers.onnx_file(net, args)), args),
        "OpenVINO fp32": lambda: bound(
            peers.compiled_by_openvino(kept.file("float.xml", converted(work)), "f32"), args
        ),
    }
    for runtime in MORE_RUNTIMES:
        name = title(runtime, mode, model)
        makers[name] = partial(ours, work, runtime, mode, 0.0, columns.setdefault(name, {}))
    return makers


def converted(work: Workload) -> Callable[[Path], None]:
    return lambda file: peers.openvino_file(peers.openvino_model(work.net, work.args), file)


def by_nncf(work: Workload, model: Model) -> Callable[[Path], None]:
    transformer = model.recipe.transformer
    return lambda file: peers.openvino_file(
        peers.nncf_model(work.net, work.args, work.calibration, transformer=transformer), file
    )


def by_onnxruntime(work: Workload, model: Model) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        if model.recipe.onnxruntime == "static":
            data = peers.onnxruntime_static_file(work.net, work.args, work.calibration)
        else:
            data = peers.onnxruntime_dynamic_file(work.net, work.args)
        file.write_bytes(data)

    return write


@dataclass(frozen=True)
class Deadline:
    """When the time of a model is over, by ``time.perf_counter``."""

    at: float

    def timed(self, makers: Mapping[str, Callable[[], Call]], columns: Any) -> dict[str, Maker]:
        """Each notes how long it takes to its first answer, in which some compile; who comes too
        late for that is left out.
        """
        return {name: self._timed(make, columns[name]) for name, make in makers.items()}

    def _timed(self, make: Callable[[], Call], column: dict[str, Any]) -> Maker:
        def made() -> Call:
            started = time.perf_counter()
            if started > self.at:
                raise TimeoutError("left out: the time for this model was over")
            call = make()
            call()
            column["seconds to load"] = time.perf_counter() - started
            return call

        return made


def title(runtime: str, mode: str, model: Model) -> str:
    """Name of Octavo's contender, with the mode where it is not the model's first."""
    return f"Octavo {runtime}" + ("" if mode == model.modes[0] else f", {mode}")


def bound(run: Answer, args: Batch) -> Call:
    return lambda: run(*args)


def channels_last(tensor: Tensor) -> Tensor:
    """Images in the order that torch's kernels want."""
    images = tensor.dim() == 4
    return tensor.contiguous(memory_format=torch.channels_last) if images else tensor


def copied(net: nn.Module) -> nn.Module:
    """A copy whose convolutions expect `channels_last`."""
    copy_of_it = copy.deepcopy(net)
    copy_of_it.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copy_of_it


def in_bf16(net: nn.Module, args: Batch) -> tuple[Callable[[], Answer], Batch]:
    """All in bf16; under autocast where the inputs are integers, as an encoder's are."""
    if all(t.is_floating_point() for t in args):
        return lambda: copied(net).bfloat16(), tuple(t.bfloat16() for t in args)

    def autocast(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = net(*args)
        return result

    return lambda: autocast, args


def quantized(work: Workload, runtime: str, mode: str) -> octavo.QuantizedModel:
    """Quantized by Octavo for a runtime."""
    with warnings.catch_warnings():  # what has no kernel stands in the JSON file
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(
            work.net,
            # Two samples at least: what capture has seen only once, it might take for a constant.
            tuple(torch.cat([t, t]) for t in work.args),
            calibration=work.calibration if mode == "static" else None,
            mode=mode,
            target=target_of(runtime),
            qconfig=qconfig_of(mode, runtime),
            progress=False,
        )


def ours(work: Workload, runtime: str, mode: str, tune_s: float, column: dict[str, Any]) -> Call:
    """Quantized by Octavo and lowered; notes what runs in int8. The fastest is tuned before, and
    so are other libraries' runtimes, a little: peers have programs for the very sizes.
    """
    options: dict[str, Any] = {"batch": work.args[0].shape[0]}
    if has_own_threads(runtime):
        options |= {"threads": torch.get_num_threads(), "precision": PRECISION.get(runtime)}
        tune_s *= SHARE_OF_ONE_RUNTIME
    if tune_s > 0 and (runtime == FASTEST or has_own_threads(runtime)):
        options |= {"tune": True, "budget": tune_s}
    q = quantized(work, runtime, mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        if runtime != q.runtime:
            q = q.lower(runtime, **options)
    summary = q.summary()
    column["runs"] = f"{q.lowered.runtime}, {summary.headline}"
    column["not in int8"] = {**summary.float_layers, **summary.fallbacks}
    foreign = has_own_threads(q.lowered.runtime)
    return bound(q, work.args if foreign else tuple(map(channels_last, work.args)))


def target_of(runtime: str) -> str:
    """A runtime's own target; that of the CPU where OpenVINO's kernels would overflow."""
    own = runtime == "onnxruntime" or (has_own_threads(runtime) and not saturates())
    return runtime if own else octavo.host_target()


def qconfig_of(mode: str, runtime: str) -> octavo.QConfig:
    """Of the runtime's target; without VNNI with weights whose products fit in pairs."""
    make = octavo.static_qconfig if mode == "static" else octavo.dynamic_qconfig
    return make(octavo.host_target() if saturates() else target_of(runtime))
