"""Run all kernels under sanitizers: ``make sanitize``.

Addresses and undefined behaviour; then threads.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from compile import HERE, LANGUAGE, SOURCES, compiler

SANITIZERS = ("address,undefined,float-cast-overflow", "thread")
# Which CPUs lack is acted out: native/amx.h.
ACTED_OUT = ("-DOCTAVO_ACT_OUT_AMX",)


def main() -> int:
    """The exit status is that of the first sanitizer that finds something."""
    command = compiler()
    if command is None:
        print("there is no C compiler: nothing was run")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for sanitizers in SANITIZERS:
            driver = Path(folder) / "driver"
            options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
            sources = map(str, [*SOURCES, HERE / "sanitize.c"])
            words = [*command, *LANGUAGE, *options, *ACTED_OUT, *sources, "-lm", "-o", str(driver)]
            subprocess.run(words, check=True)
            print(sanitizers, flush=True)
            status = subprocess.run([driver], check=False).returncode
            if status:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
