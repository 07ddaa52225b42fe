"""Compile Octavo's own kernels into one library beside the Python that loads it.

``make native`` runs it, and so does every installation from source (``hatch_hook.py``). It needs
Python's standard library and a C compiler: ``CC``, or the first of cc, gcc and clang.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE.parent / "src" / "octavo" / "numerics" / "native" / "kernels.so"
SOURCES = [
    HERE / f"{name}.c"
    for name in (
        *("isa", "threads", "product", "eight_bits", "four_bits", "widened", "recurrent"),
        *("activations", "convolution", "tiles", "depthwise", "attention", "observing"),
        *("attending", "int8_tokens", "reading", "tile_products", "columns"),
        *("elementwise", "pooling", "program", "normalization"),
        *("decoder", "float_rows", "layers", "grouped", "embedding", "dynamic", "float_attention"),
    )
]

LANGUAGE = ["-std=gnu11", "-pthread", "-Wall", "-Wextra", "-Werror=implicit"]
# Nobody asks for floating point exceptions or errno; order and rounding stay as they are written.
# Loops begin where lines of the cache do: else attention took 1 to 1.25 of its time, by chance.
FAST = ["-O3", "-falign-functions=64", "-falign-loops=64", "-fno-math-errno", "-fno-trapping-math"]
SHARED = ["-fPIC", "-shared", "-fvisibility=hidden"]


def compiler() -> list[str] | None:
    """The command that compiles C; ``None`` where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def digest() -> str:
    """Of all sources; octavo.numerics.native.library compares it with the library's."""
    parts = sorted(HERE.glob("*.[ch]"))
    return hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()


def is_new(library: Path) -> bool:
    """Whether a library was made of these sources, by this script, and is one of this machine."""
    try:
        made = library.stat().st_mtime
        found = ctypes.CDLL(str(library)).octavo_sources
    except (OSError, AttributeError):
        return False
    found.restype = ctypes.c_char_p
    return found() == digest().encode() and Path(__file__).stat().st_mtime <= made


def compile_library(library: Path = LIBRARY, *more: str) -> str:
    """Make it, unless it is new; says why it cannot be made, ``""`` where it is there.

    Args:
        library: the file.
        more: options of the compiler.
    """
    command = compiler()
    if command is None:
        return "there is no C compiler (cc, gcc or clang) on the PATH"
    if is_new(library):
        return ""
    # Whole, then in its place: a process may be running the old one.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        told = f'-DOCTAVO_SOURCES="{digest()}"'
        options = [*LANGUAGE, *FAST, *SHARED, told, *more]
        words = [*command, *options, *map(str, SOURCES), "-lm", "-o", str(made)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"{command[0]} cannot be started: {error}"
        if done.returncode:
            return f"{shlex.join(words)}\n{done.stderr}"
        os.replace(made, library)
    return ""


if __name__ == "__main__":
    problem = compile_library()
    if problem:
        print(f"Octavo's own kernels were not compiled: {problem}", file=sys.stderr)
    sys.exit(bool(problem))
