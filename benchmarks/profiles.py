"""Where the time of a model goes, on OpenVINO and ONNX Runtime: ours beside the peer's own int8.

Each row is a kind of kernel, with how many there are and what all of them take in a call (the
median of each over the calls, added up), by the runtime's own profiler. So what differs between two
models on one runtime is seen as kernels that one has and the other has not. The time of whole calls
is in `speed`. The peer on OpenVINO is NNCF, under OpenVINO's own settings (it computes what is
float in bfloat16 where the CPU has it), and so is ours; on ONNX Runtime it is ONNX Runtime's own
quantizer.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import by_nncf, by_onnxruntime, quantized
from benchmarks.kept import Kept
from benchmarks.peers import Batch
from benchmarks.report import Report, parsed, parser
from benchmarks.workloads import MODELS, Model, Workload
from octavo.graph.graph import Graph
from octavo.runtimes import RUNTIMES, Options, cpu
from octavo.runtimes.onnxruntime import UNWANTED, session_settings
from octavo.runtimes.openvino import compiled_model

SMALL = 0.01  # of the whole: kinds that take less are added up
OURS, PEER = "Octavo", "peer"

Times = dict[str, list[float]]  # kind of kernel -> milliseconds of each of its kernels


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    made.add_argument("--calls", type=int, default=30, help="of each model; default: %(default)s")
    options = parsed(made, words)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        made.error(f"unknown models: {', '.join(unknown)}; of {', '.join(MODELS)}")
    names = options.models or list(MODELS)
    report = Report("profiles", "Milliseconds of a call, by kind of kernel", {"models": names})
    for name in names:
        model = MODELS[name]
        work = model.make(8)
        for runtime, profiles in PROFILES.items():
            found = profiles(work, model, options.calls)
            rows = [{"model": name, "runtime": runtime, **row} for row in beside(found)]
            report.rows += rows
    report.finish(options.out)


def beside(profiles: Mapping[str, Times]) -> Iterator[dict[str, Any]]:
    """A row for each kind of kernel, what takes longest first; one for the small, and for all."""
    whole = max(total(times, times) for times in profiles.values())
    longest = {
        kind: max(total(times, [kind]) for times in profiles.values())
        for kind in dict.fromkeys(kind for times in profiles.values() for kind in times)
    }
    ranked = sorted(longest, key=longest.__getitem__, reverse=True)
    large = [kind for kind in ranked if longest[kind] > SMALL * whole]
    rows = {kind: [kind] for kind in large}
    rows |= {"others": ranked[len(large) :], "all": ranked}
    for name, kinds in rows.items():
        row: dict[str, Any] = {"kernel": name}
        for contender, times in profiles.items():
            count = sum(len(times.get(kind, ())) for kind in kinds)
            row |= {f"{contender}: ms": total(times, kinds), "kernels of " + contender: count}
        yield row


def total(times: Times, kinds: Iterable[str]) -> float:
    """Milliseconds of all kernels of some kinds."""
    return sum(spent for kind in kinds for spent in times.get(kind, ()))


def on_openvino(work: Workload, model: Model, calls: int) -> dict[str, Times]:
    """Ours, and NNCF's."""
    import openvino

    precision = "bfloat16" if cpu.has_bf16() else "float32"
    options = Options(threads=torch.get_num_threads(), precision=precision)
    kept = Kept.of(work.net, work.shown())
    settings = {
        "PERF_COUNT": True,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads,
    }
    theirs = openvino.Core().compile_model(
        kept.file("quantized.xml", by_nncf(work, model)), "CPU", settings
    )
    graph = _graph(work, model, "openvino")
    data = _file(graph, "openvino")
    sizes = {
        (entry.name, axis): size
        for entry, tensor in zip(graph.inputs, work.args, strict=True)
        for axis, size in enumerate(tensor.shape)
    }
    mine = compiled_model(data, options, sizes, PERF_COUNT=True)
    return {
        OURS: _openvino_times(mine, work.args, calls),
        PEER: _openvino_times(theirs, work.args, calls),
    }


def _openvino_times(compiled: Any, args: Batch, calls: int) -> Times:
    request = compiled.create_infer_request()
    arrays = [tensor.numpy() for tensor in args]
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(calls):
        request.infer(arrays)
        for kernel in request.get_profiling_info():
            spent = 1e3 * kernel.real_time.total_seconds()
            kind = f"{kernel.node_type} {kernel.exec_type}"
            if spent:
                seen[kind, kernel.node_name].append(spent)
    return _by_kind(seen)


def on_onnxruntime(work: Workload, model: Model, calls: int) -> dict[str, Times]:
    """Ours, and that of ONNX Runtime's own quantizer."""
    import onnxruntime

    kept = Kept.of(work.net, work.shown())
    theirs = kept.file("quantized.onnx", by_onnxruntime(work, model)).read_bytes()
    options = Options(threads=torch.get_num_threads(), batch=work.args[0].shape[0])
    graph = _graph(work, model, "onnxruntime")
    plain = onnxruntime.SessionOptions()
    plain.intra_op_num_threads = options.threads
    mine = (_file(graph, "onnxruntime"), session_settings(graph, options), UNWANTED)
    return {
        OURS: _onnxruntime_times(*mine, work.args, calls),
        PEER: _onnxruntime_times(theirs, plain, [], work.args, calls),
    }


def _onnxruntime_times(
    data: bytes, settings: Any, unwanted: list[str], args: Batch, calls: int
) -> Times:
    import onnxruntime

    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(
            data, settings, ["CPUExecutionProvider"], disabled_optimizers=unwanted
        )
        names = [entry.name for entry in session.get_inputs()]
        feeds = {name: tensor.numpy() for name, tensor in zip(names, args, strict=True)}
        for _ in range(calls):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            seen[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    return _by_kind(seen)


def _by_kind(seen: Mapping[tuple[str, str], list[float]]) -> Times:
    """The median of each kernel, by its kind."""
    times: Times = defaultdict(list)
    for (kind, _), spent in seen.items():
        times[kind].append(statistics.median(spent))
    return dict(times)


def _graph(work: Workload, model: Model, runtime: str) -> Graph:
    """Quantized by Octavo for a runtime, in the mode that its goals are about."""
    return quantized(work, runtime, model.modes[0]).graph


def _file(graph: Graph, runtime: str) -> bytes:
    from octavo.runtimes.onnx.export import to_onnx
    from octavo.runtimes.onnx.writer import serialized

    reader = RUNTIMES[runtime].onnx
    assert reader is not None
    unguarded = replace(graph, guards=())  # as runtimes lower it: a call's sizes are checked before
    return serialized(to_onnx(unguarded, reader.dialect))


PROFILES: dict[str, Callable[[Workload, Model, int], dict[str, Times]]] = {
    "openvino": on_openvino,
    "onnxruntime": on_onnxruntime,
}


if __name__ == "__main__":
    main()
