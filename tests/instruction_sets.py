"""The tests of kernels, runtimes and parity, once for each kind of CPU that this one can act out.

``make isa`` runs it. A kind is acted out by limits that libraries read when they are loaded:
``ONEDNN_MAX_CPU_ISA`` limits oneDNN in torch and in OpenVINO, ``ATEN_CPU_CAPABILITY`` torch's own
kernels, ``OCTAVO_MAX_CPU_ISA`` Octavo's. ONNX Runtime reads none of them and takes what the CPU
has; so does Inductor's C++ code, and so do some kernels of OpenVINO's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.cpu_kinds import KINDS  # noqa: E402
from benchmarks.environment import cpu_flags  # noqa: E402

# What depends on Octavo's limit alone: run once for each.
NATIVE = (
    "tests/runtimes/native/test_eight_bits.py",
    "tests/runtimes/native/test_four_bits.py",
    "tests/runtimes/native/test_recurrent.py",
    "tests/runtimes/native/test_convolution.py",
    "tests/runtimes/native/test_operations.py",
    "tests/runtimes/native/test_transposed.py",
    "tests/runtimes/native/test_volumes.py",
    "tests/runtimes/native/test_rows.py",
    "tests/runtimes/native/test_fusing.py",
)
# What else depends on instructions. Inductor and packages are compiled for some minutes: `make
# test` has them, on the CPU's own instructions.
FILES = (
    "tests/runtimes/torch/test_recurrent.py",
    "tests/runtimes/torch/test_native_layers.py",
    "tests/runtimes/torch/test_native_floats.py",
    "tests/runtimes/torch/test_onednn.py",
    "tests/runtimes/torch/test_int8.py",
    "tests/runtimes/torch/test_integer_kernels.py",
    "tests/runtimes/torch/test_dynamic.py",
    "tests/runtimes/torch/test_weight_only.py",
    "tests/runtimes/torch/test_siblings.py",
    "tests/runtimes/test_contract.py",
    "tests/runtimes/test_foreign_runtimes.py",
    "tests/test_every_layer.py",
    "tests/quantization/test_bfloat16.py",
    "tests/numerics/test_octavo_operators.py",
    "tests/measuring/test_parity.py",
)
ACTED_OUT = ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16")
# What is new with bfloat16: kernels of integers are those of the kind before it.
WITH_BFLOAT16 = (
    "tests/runtimes/test_contract.py",
    "tests/runtimes/test_foreign_runtimes.py",
    "tests/quantization/test_bfloat16.py",
    "tests/measuring/test_parity.py",
)


def main() -> int:
    """Run them; the exit status is 1 if any failed."""
    flags = cpu_flags()
    results = []
    ran: set[str] = set()
    for kind in (kind for kind in KINDS if kind.onednn in ACTED_OUT):
        limits = {"ONEDNN_MAX_CPU_ISA": kind.onednn, "ATEN_CPU_CAPABILITY": kind.aten}
        limits |= {
            "OCTAVO_MAX_CPU_ISA": "avx2"
            if kind.onednn in ("AVX2", "AVX512_CORE")
            else "avx512_vnni"
        }
        has_it = kind.flag in flags
        if not has_it:
            results.append((limits, "this CPU lacks it"))
            continue
        files = FILES if limits["OCTAVO_MAX_CPU_ISA"] in ran else NATIVE + FILES
        if kind.onednn == "AVX512_CORE_BF16":
            files = WITH_BFLOAT16
        results.append((limits, tests_under(limits, files)))
        ran.add(limits["OCTAVO_MAX_CPU_ISA"])
    # oneDNN with all that the CPU has, torch's own kernels and Octavo's with none of it.
    limits = {"ATEN_CPU_CAPABILITY": "default", "OCTAVO_MAX_CPU_ISA": "portable"}
    results.append((limits, tests_under(limits, NATIVE + FILES)))
    print("\nacted out:")
    for limits, result in results:
        print(f"  {' '.join(f'{name}={value}' for name, value in limits.items())}: {result}")
    return int(any(result == "failed" for _, result in results))


def tests_under(limits: dict[str, str], files: Sequence[str]) -> str:
    """``"passed"`` or ``"failed"``: the tests of files in a process that has these limits."""
    print(f"\n{limits}", flush=True)
    words = ["-m", "pytest", "--quiet", "--numprocesses", "auto", "--maxprocesses", "4"]
    words += ["-k", "not onnxruntime"]  # which has no limits: `make test` runs it
    done = subprocess.run(
        [sys.executable, *words, "--dist", "worksteal", *files],
        cwd=ROOT,
        env=os.environ | limits,
        check=False,
    )
    return "passed" if done.returncode == 0 else "failed"


if __name__ == "__main__":
    sys.exit(main())
