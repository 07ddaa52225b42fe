"""Where the time of a native program goes: each step of a network on Octavo's own kernels.

A step runs alone here, in its turn in the program, so that it finds in the caches what it finds in
a call. What a call of nothing takes is taken off. The sum is somewhat more than the whole call,
since threads meet behind each step and begin anew.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import channels_last, quantized
from benchmarks.report import Report, parsed, parser
from benchmarks.workloads import MODELS
from octavo.numerics.native.library import library
from octavo.runtimes.native import structs
from octavo.runtimes.native.planning import Plan
from octavo.runtimes.native.program import Program
from octavo.runtimes.native.structs import Kind

Bases = Any  # an array of addresses


def recorded(call: Callable[[], object]) -> list[tuple[Plan, list[Tensor]]]:
    """The plans that a call goes through, and the tensors that each is given and makes."""
    found: list[tuple[Plan, list[Tensor]]] = []
    plain = Program.__call__

    def recording(self: Program, *tensors: Tensor | int) -> Any:
        result = plain(self, *tensors)
        plan = list(self._plans.values())[-1]
        made = [torch.empty_strided(*like, dtype=dtype) for *like, dtype in plan.made]
        arena = torch.empty(plan.arena, dtype=torch.uint8)
        given = [x for x in tensors if isinstance(x, Tensor)]
        found.append((plan, [arena, *given, *made]))
        return result

    Program.__call__ = recording  # type: ignore[method-assign]
    try:
        call()
    finally:
        Program.__call__ = plain  # type: ignore[method-assign]
    return found


def timed(plan: Plan, memory: Sequence[Tensor], rounds: int) -> tuple[list[float], float]:
    """Seconds of each step, and of the whole program."""
    loaded, threads = library(), torch.get_num_threads()
    assert loaded is not None
    bases = (ctypes.c_void_p * len(memory))(*[tensor.data_ptr() for tensor in memory])
    size, count = ctypes.sizeof(structs.Step), len(plan.steps)
    places = [ctypes.byref(plan.steps, index * size) for index in range(count)]

    def seconds(place: Any, steps: int) -> float:
        start = time.perf_counter()
        loaded.octavo_run(place, ctypes.c_int64(steps), bases, threads)
        return time.perf_counter() - start

    turns = [[seconds(place, 1) for place in places] for _ in range(rounds)]
    wholes = [seconds(places[0], count) for _ in range(rounds)]
    nothing = statistics.median(seconds(places[0], 0) for _ in range(rounds))
    steps = [max(0.0, statistics.median(turn) - nothing) for turn in zip(*turns, strict=True)]
    return steps, statistics.median(wholes)


def described(step: structs.Step) -> dict[str, Any]:
    """What a step is, in words and sizes, and its multiply-adds."""
    kind = Kind(step.kind)
    row: dict[str, Any] = {"step": kind.name.lower(), "sizes": "", "chunks": step.chunks}
    if kind == Kind.CONVOLVE:
        c = step.of.convolution
        window = f"{c.kernel_height}x{c.kernel_width}" + (f"/{c.stride_y}" * (c.stride_y > 1))
        depthwise = c.groups > 1 and c.groups == c.input.channels == c.output.channels
        row["step"] = f"{'depthwise' if depthwise else 'dense'} {window}"
        row["sizes"] = f"{sizes_of(c.input)} -> {sizes_of(c.output)}"
        pixels = c.output.batch * c.output.height * c.output.width * c.output.channels
        taps = c.kernel_height * c.kernel_width * c.input.channels // c.groups
        row["multiply-adds"] = pixels * taps
    elif kind == Kind.POOL:
        row["sizes"] = f"{sizes_of(step.of.pooling.input)} -> {sizes_of(step.of.pooling.output)}"
    elif kind == Kind.QUANTIZE:
        row["sizes"] = sizes_of(step.of.quantize.shape)
    elif kind == Kind.COMBINE:
        row["sizes"] = sizes_of(step.of.binary.shape)
    return row


def sizes_of(shape: Any) -> str:
    sizes = (shape.channels, shape.height, shape.width)
    return "x".join(map(str, sizes)) + (f" x {shape.batch}" if shape.batch > 1 else "")


def rows_of(name: str, runs: Sequence[tuple[Plan, list[Tensor]]], rounds: int) -> Iterator[Any]:
    """A row for each step of a network, the slowest first, and one for all."""
    rows, whole = [], 0.0
    for plan, memory in runs:
        steps, all_of_it = timed(plan, memory, rounds)
        whole += all_of_it
        for index, (step, seconds) in enumerate(zip(plan.steps, steps, strict=True)):
            row = {"model": name, "index": index, **described(step), "us": 1e6 * seconds}
            rate = row.pop("multiply-adds", 0) / max(seconds, 1e-9)
            rows.append(row | ({"G multiply-adds/s": rate / 1e9} if rate else {}))
    total = sum(row["us"] for row in rows)
    for row in rows:
        row["share"] = row["us"] / total
    yield from sorted(rows, key=lambda row: -row["us"])
    yield {"model": name, "step": "sum of all", "us": total}
    yield {"model": name, "step": "in one call", "us": 1e6 * whole}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    made.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    options = parsed(made, words)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        made.error(f"unknown models: {', '.join(unknown)}; of {', '.join(MODELS)}")
    names = options.models or ["mobilenet_v2", "resnet18", "mobilenet_v3_large", "efficientnet_b0"]
    report = Report("steps", "Microseconds of each step of native programs", {"models": names})
    for name in names:
        model = MODELS[name]
        work = model.make(8)
        args = tuple(map(channels_last, work.args))
        q = quantized(work, "torch", model.modes[0])
        q(*args)
        with torch.inference_mode():
            report.rows += rows_of(name, recorded(lambda: q(*args)), options.rounds)  # noqa: B023
    report.finish(options.out)


if __name__ == "__main__":
    main()
