"""Run all benchmarks, each in a process of its own: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

# In this order: the ones about time first, while the machine is as quiet as it was.
NAMES = (
    "speed",
    "profiles",
    "steps",
    "tuning",
    "memory_bound",
    "decoding",
    "pixels",
    "recurrent",
    "native",
    "advice",
    "transformer_layers",
    "convolutions",
    "tokens",
    "open_sizes",
    "serving",
    "qat_step",
    "articles",
    "calibration",
    "import_time",
    "minilm",
    "accuracy",
    "attention",
    "efforts",
    "four_bits",
    "minilm_four_bits",
    "agreement",
    "parity",
    "precision",
    "language_models",
    "large_folder",
    "int8_cache",
    "proof",
    "analysis",
    "search",
    "qat_accuracy",
    "qat_deployed",
    "detection",
    "reach",
    "executorch",
    "litert",
    "phone_files",
    "phones",
    "demo",
)


def main() -> int:
    """Returns how many benchmarks failed to run."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    names = options.parse_args().names or NAMES
    failed = []
    for name in names:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"])
        print(f"({name}: {time.perf_counter() - started:.0f} s)\n", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
