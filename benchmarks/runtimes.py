"""Octavo's runtimes against what else runs a PyTorch model in int8, in bf16 and in float.

Every model has a process of its own, in which all contenders take turns; time is compared within a
round, and the ratio is the median over the rounds, with its quartiles. ONNX Runtime, OpenVINO and
torch have threads of their own, which spin after a call, so that each turn begins with a rest. The
SQNR against fp32 stands beside the time. The weights are random (those of minilm are trained).

"seconds to load" is what calibrating, converting and loading took, with the first call, in which
some compile; what Inductor finds in its cache on disk is not compiled again.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import peers
from benchmarks.contest import Call, Contest, Maker, add_rounds, contest
from benchmarks.peers import Answer, Batch
from benchmarks.report import Goal, Report, parsed, parser
from benchmarks.workloads import MODELS, Model, Workload
from octavo.runtimes import RUNTIMES, has_own_threads
from octavo.runtimes.cpu import saturates

FP32, BF16 = "torch fp32", ("torch bf16", "torch bf16, compiled")
ORT_INT8, NNCF_INT8 = "ONNX Runtime, its own int8", "OpenVINO, NNCF's int8"
OURS = tuple(name for name in RUNTIMES if name not in ("reference", "fastest"))
PACKAGES = "onnx onnxruntime openvino nncf torchao transformers".split()

# Octavo's runtime -> the peer on the same runtime, and what the geometric mean of its time over
# the peer's may be at most; for each model that is 1.
RIVALS = {"openvino": (NNCF_INT8, 0.9), "onnxruntime": (ORT_INT8, 0.7)}
LIMIT = 1.0
SAMPLES = 8  # to calibrate with
MANY_SAMPLES = 300  # from which on the time that this takes is a goal: at most half of NNCF's
CONVERSION_LIMIT = 0.5
REST_S = 0.1
PASSED_ON = "threads out rounds seconds slowest samples".split()


def contenders(
    work: Workload, model: Model, columns: dict[str, dict[str, Any]]
) -> dict[str, Maker]:
    """name -> what makes the call to time; ``columns`` are filled with what each notes of itself.

    The first is the float reference, in the layout that torch is fastest with.
    """
    net, args, recipe = work.net, work.args, model.recipe
    last = tuple(map(channels_last, args))
    run_half, args_half = in_bf16(net, last)
    makers: dict[str, Callable[[], Call]] = {
        FP32: lambda: bound(copied(net), last),
        "torch fp32, compiled": lambda: bound(peers.compiled(copied(net), last), last),
        BF16[0]: lambda: bound(run_half(), args_half),
        BF16[1]: lambda: bound(peers.compiled(run_half(), args_half), args_half),
    }
    if recipe.torch_ao == "FX":
        images = [batch[0] for batch in work.calibration]
        makers["torch.ao FX"] = lambda: bound(peers.fx(net, images, "onednn"), last)
    else:
        makers["torch.ao dynamic"] = lambda: bound(peers.dynamic(net), last)
    makers |= {
        "torchao PT2E, compiled": lambda: bound(peers.pt2e(net, last, work.calibration), last),
        "ONNX Runtime fp32": lambda: bound(peers.onnxruntime_float(net, args), args),
        ORT_INT8: lambda: bound(
            peers.onnxruntime_static(net, args, work.calibration)
            if recipe.onnxruntime == "static"
            else peers.onnxruntime_dynamic(net, args),
            args,
        ),
        "OpenVINO fp32": lambda: bound(peers.openvino_float(net, args), args),
        NNCF_INT8: lambda: bound(
            peers.nncf(net, args, work.calibration, transformer=recipe.transformer), args
        ),
    }
    for mode in model.modes:
        for runtime in OURS:
            name = title(runtime, mode, model)
            makers[name] = partial(ours, work, runtime, mode, columns.setdefault(name, {}))
    return {name: timed(make, columns.setdefault(name, {})) for name, make in makers.items()}


def title(runtime: str, mode: str, model: Model) -> str:
    """Name of Octavo's contender, with the mode where it is not the model's first."""
    return f"Octavo {runtime}" + ("" if mode == model.modes[0] else f", {mode}")


def bound(run: Answer, args: Batch) -> Call:
    return lambda: run(*args)


def timed(make: Callable[[], Call], column: dict[str, Any]) -> Maker:
    """Notes how long it takes to the first answer: some compile at the first call."""

    def made() -> Call:
        started = time.perf_counter()
        call = make()
        call()
        column["seconds to load"] = time.perf_counter() - started
        return call

    return made


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


def ours(work: Workload, runtime: str, mode: str, column: dict[str, Any]) -> Call:
    """Quantized by Octavo and lowered; notes what runs in int8."""
    batch = work.args[0].shape[0]
    q = quantized(work, runtime, mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        if has_own_threads(runtime):
            q = q.lower(runtime, threads=torch.get_num_threads(), batch=batch)
        elif runtime != q.runtime:
            q = q.lower(runtime, batch=batch)
    summary = q.summary()
    column["int8"] = summary.headline
    column["not in int8"] = {**summary.float_layers, **summary.fallbacks}
    return bound(q, work.args if has_own_threads(runtime) else tuple(map(channels_last, work.args)))


def target_of(runtime: str) -> str:
    """A runtime's own target; that of the CPU where OpenVINO's kernels would overflow."""
    own = runtime == "onnxruntime" or (has_own_threads(runtime) and not saturates())
    return runtime if own else octavo.host_target()


def qconfig_of(mode: str, runtime: str) -> octavo.QConfig:
    """Of the runtime's target; without VNNI with weights whose products fit in pairs."""
    make = octavo.static_qconfig if mode == "static" else octavo.dynamic_qconfig
    return make(octavo.host_target() if saturates() else target_of(runtime))


def measure(name: str, options: Namespace) -> None:
    """One model, in this process."""
    model = MODELS[name]
    work = model.make(options.samples)
    columns: dict[str, dict[str, Any]] = {}
    found = contest(
        contenders(work, model, columns), options.rounds, options.seconds, options.slowest, REST_S
    )
    report = Report(
        file_of(name, options.samples),
        f"{name}: Octavo's runtimes and their peers",
        {
            "shapes": [list(t.shape) for t in work.args],
            "calibration batches": len(work.calibration),
            "targets": {runtime: target_of(runtime) for runtime in OURS},
        },
    )
    note_versions(report)
    details: dict[str, dict[str, str]] = {}
    ratios: dict[str, float] = {}
    for contender, row in found.rows.items():
        spread = found.ratio(contender, FP32)
        if spread is not None:
            row |= {"time / fp32": spread.median, "quartiles": str(spread)}
            ratios[contender] = spread.median
        noted = columns[contender]
        if "not in int8" in noted:
            details[contender] = noted.pop("not in int8")
        report.rows.append(row | noted)
    mine = [contender for contender in ratios if contender.startswith("Octavo")]
    fastest = min(mine, key=ratios.__getitem__, default="no Octavo runtime")
    over_rivals = {
        runtime: found.median_ratio(f"Octavo {runtime}", rival)
        for runtime, (rival, _) in RIVALS.items()
    }
    report.details = {
        "not in int8": details,
        "ratios": ratios,
        "fastest": fastest,
        "over rivals": over_rivals,
    }
    report.goals = goals(name, found, report, options.samples)
    report.finish(options.out)


def goals(name: str, found: Contest, report: Report, samples: int) -> list[Goal]:
    """What is asked of Octavo on one model."""
    fastest = report.details["fastest"]
    made = [
        Goal(f"{name}: Octavo {runtime}: time over {RIVALS[runtime][0]}", value, LIMIT)
        for runtime, value in report.details["over rivals"].items()
    ]
    speedup = MODELS[name].speedup
    if speedup is not None:
        value = found.median_ratio(fastest, FP32)
        made.append(Goal(f"{name}: {fastest}: time over fp32", value, round(1 / speedup, 4)))
    made += [
        Goal(f"{name}: {fastest}: time over {half}", found.median_ratio(fastest, half), LIMIT)
        for half in BF16
        if half in found.times  # else it was too slow, or failed: its row says which
    ]
    if samples >= MANY_SAMPLES:
        seconds = {row["contender"]: row.get("seconds to load") for row in report.rows}
        mine, theirs = seconds["Octavo openvino"], seconds[NNCF_INT8]
        value = mine / theirs if mine and theirs else None
        made.append(Goal(f"{name}: seconds to load, over NNCF's", value, CONVERSION_LIMIT))
    return made


def note_versions(report: Report) -> None:
    """The peers' too."""
    report.machine["versions"] |= {package: version(package) for package in PACKAGES}


def file_of(name: str, samples: int) -> str:
    """Of the JSON file, without its end."""
    return f"runtimes-{name}" + ("" if samples == SAMPLES else f"-{samples}-samples")


def summarize(names: Sequence[str], options: Namespace) -> None:
    """Time over fp32: a row a contender, a column a model; and the geometric means."""
    found = {}
    for name in names:
        file = options.out / f"{file_of(name, options.samples)}.json"
        found[name] = json.loads(file.read_text())
    ratios = {name: result["details"]["ratios"] for name, result in found.items()}
    report = Report(
        "runtimes",
        "Time over torch's in fp32, by model",
        {"target": octavo.host_target()},
        notes=["a geometric mean is that of the models which the contender took part in"],
    )
    note_versions(report)
    for contender in dict.fromkeys(c for row in ratios.values() for c in row):
        row = {name: ratios[name].get(contender) for name in names}
        timed = [value for value in row.values() if value is not None]
        mean = {"geometric mean": statistics.geometric_mean(timed), "models": len(timed)}
        report.rows.append({"contender": contender} | row | mean)
    for runtime, (rival, limit) in RIVALS.items():
        over = [result["details"]["over rivals"][runtime] for result in found.values()]
        # A model that either of them fails on counts against the goal of that model.
        both = [value for value in over if value is not None]
        mean_over = statistics.geometric_mean(both) if both else None
        what = f"Octavo {runtime}: time over {rival}, geometric mean of {len(both)} models"
        report.goals.append(Goal(what, mean_over, limit))
    for result in found.values():
        report.goals += [
            Goal(goal["name"], goal["value"], goal["limit"], goal["at_most"])
            for goal in result["goals"]
        ]
    report.finish(options.out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    made.add_argument("--model", choices=MODELS, help="this one, in this process, and no summary")
    add_rounds(made, seconds=60, each="a model", slowest=2)
    made.add_argument(
        "--samples", type=int, default=SAMPLES, help="to calibrate with; default: %(default)s"
    )
    options = parsed(made, words)
    if options.model is not None:
        measure(options.model, options)
        return
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        made.error(f"unknown models: {', '.join(unknown)}; of {', '.join(MODELS)}")
    given = [f"--{n}={getattr(options, n)}" for n in PASSED_ON if getattr(options, n) is not None]
    names: list[str] = []
    failed: list[str] = []
    for name in options.models or MODELS:
        command = [sys.executable, "-m", "benchmarks.runtimes", "--model", name, *given]
        done = subprocess.run(command)
        (failed if done.returncode else names).append(name)
    if names:
        summarize(names, options)
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
