"""Random networks, quantized, on every runtime, against the oracle: one line of JSON for each.

``python tests/random_nets_run.py START STOP`` takes the networks of these seeds. It is a program of
its own since a runtime may end the process: `findings` starts it again behind such a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from random_nets import BATCHES, Case, case

import octavo
from octavo.errors import NothingQuantized, OctavoError, RuntimeDisagrees
from octavo.quantization.targets import TARGETS
from octavo.runtimes.agreement import agreement

RUNTIMES = ("torch", "onnxruntime", "openvino")
# What may become of a network on a runtime: it agrees; lowering itself says that it does not, or
# that it cannot be; or calls are wrong though lowering has said nothing.
AGREES, REPORTED, UNREPORTED, CRASHED = "agrees", "reported", "unreported", "crashed"


def findings(start: int, stop: int) -> Iterator[dict[str, Any]]:
    """What was found for the seeds, each in a child process or behind others in one."""
    while start < stop:
        command = [sys.executable, __file__, str(start), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield from (row for row in rows if "found" in row)
        if not done.returncode:
            return
        last = rows[-1] if rows else {"seed": start, "runtime": "start"}
        crash = {"seed": last["seed"], "runtime": last["runtime"], "found": CRASHED}
        yield crash | {"why": f"exit code {done.returncode}: {done.stderr[-300:]}"}
        start = last["seed"] + 1


def _main(start: int, stop: int) -> None:
    warnings.simplefilter("ignore", octavo.OctavoWarning)
    torch.set_num_threads(1)
    for seed in range(start, stop):
        _say(seed=seed, runtime="quantize")
        made = case(seed, tuple(sorted(TARGETS)))
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
    _main(int(sys.argv[1]), int(sys.argv[2]))
