"""Random networks, quantized, on every runtime, against the oracle: one line of JSON for each.

``python tests/random_nets_run.py SEED ...`` takes the networks of these seeds. It is a program of
its own since a runtime may end the process: `findings` starts it again behind such a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from random_nets import BATCHES, Case, case

import octavo
from octavo.errors import NothingQuantized, OctavoError, RuntimeDisagrees
from octavo.quantization.targets import TARGETS
from octavo.runtimes.agreement import agreement

RUNTIMES: tuple[str, ...] = ("torch", "onnxruntime", "openvino")
# Where a CPU with AVX-512 acts out one without, OpenVINO writes kernels for AVX-512 all the same,
# and counts their registers as if it did not: norms of what 16 does not divide end the process.
if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX2_VNNI"):
    RUNTIMES = ("torch", "onnxruntime")
# Models for ExecuTorch have a runtime of their own.
_OF_RUNTIMES = tuple(sorted(TARGETS.keys() - {"executorch"}))
# What may become of a network on a runtime: it agrees; lowering itself says that it does not, or
# that it cannot be; or calls are wrong though lowering has said nothing.
AGREES, REPORTED, UNREPORTED, CRASHED = "agrees", "reported", "unreported", "crashed"


def findings(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What was found for the seeds, each in a child process or behind others in one."""
    while seeds:
        command = [sys.executable, __file__, *map(str, seeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield from (row for row in rows if "found" in row)
        if not done.returncode:
            return
        last = rows[-1] if rows else {"seed": seeds[0], "runtime": "start"}
        crash = {"seed": last["seed"], "runtime": last["runtime"], "found": CRASHED}
        yield crash | {"why": f"exit code {done.returncode}: {done.stderr[-300:]}"}
        seeds = seeds[seeds.index(last["seed"]) + 1 :]


def _main(seeds: Sequence[int]) -> None:
    warnings.simplefilter("ignore", octavo.OctavoWarning)
    torch.set_num_threads(1)
    for seed in seeds:
        _say(seed=seed, runtime="quantize")
        made = case(seed, _OF_RUNTIMES)
        try:
            q = _quantized(made)
        except NothingQuantized:
            continue
        except OctavoError as error:
            _say(seed=seed, runtime="torch", found=REPORTED, why=str(error))
            continue
        for runtime in RUNTIMES:
            _say(seed=seed, runtime=runtime)
            found, why = _on(runtime, q, made)
            what = {"mode": q.plan.mode, "target": made.target, "found": found, "why": why}
            _say(seed=seed, runtime=runtime, **what)


def _quantized(made: Case) -> octavo.QuantizedModel:
    """In its mode; static where that has nothing to quantize."""

    def to(mode: str) -> octavo.QuantizedModel:
        data = made.calibration
        return octavo.quantize(
            made.net, data[0], calibration=data, mode=mode, target=made.target, progress=False
        )

    try:
        return to(made.mode)
    except NothingQuantized:
        return to("static")


def _on(runtime: str, q: octavo.QuantizedModel, made: Case) -> tuple[str, str]:
    try:
        lowered = q.lower(runtime)
    except OctavoError as error:
        kind = "" if isinstance(error, RuntimeDisagrees) else f"{type(error).__name__}: "
        return REPORTED, f"{kind}{error}"
    chance = torch.Generator().manual_seed(made.seed)
    data = torch.cat(made.calibration[1:] + made.calibration[:1])
    for batch in BATCHES:
        x = data[torch.randperm(len(data), generator=chance)[:batch]]
        try:
            found = agreement(q.graph, lowered.lowered, [(x,)])
        except OctavoError as error:
            return UNREPORTED, f"batch {batch}: {error}"
        if found is None or not found.agrees:
            return UNREPORTED, f"batch {batch}: {found}"
    return AGREES, ""


def _say(**row: Any) -> None:
    sys.stdout.write(f"{json.dumps(row)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main([int(seed) for seed in sys.argv[1:]])
