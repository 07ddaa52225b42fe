"""Loading the library, and which of a CPU's instructions it uses.

Tested in tests/numerics/native/test_library.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import warnings
from functools import cache
from pathlib import Path

from octavo.errors import OctavoWarning

ABI = 21  # OCTAVO_ABI of native/octavo.h
INSTRUCTION_SETS = ("portable", "avx2", "avx512_vnni", "amx")
LIMIT = "OCTAVO_MAX_CPU_ISA"  # of the environment: one of them, to act out a lesser CPU
PATH = Path(__file__).with_name("kernels.so")
SOURCES = Path(__file__).parents[4] / "native"  # of a checkout

MISSING = "Octavo's own kernels are not in this installation"
_SLOW = "Octavo's own kernels know no vector instructions of this CPU"
NOTE = (
    "this installation has no kernels of Octavo's own, which run {layers} on integers: with a C "
    "compiler (gcc or clang) on the PATH, installing Octavo from source again compiles them"
)


@cache
def library() -> ctypes.CDLL | None:
    """The library; ``None`` where there is none that fits."""
    found = load(PATH)
    limit = os.environ.get(LIMIT, "").lower()
    if found is not None and limit:
        if limit in INSTRUCTION_SETS:
            found.octavo_limit_isa(INSTRUCTION_SETS.index(limit))
        else:
            known = ", ".join(INSTRUCTION_SETS)
            warnings.warn(f"{LIMIT}={limit} is ignored: it is none of {known}", OctavoWarning, 2)
    return found


def load(path: Path) -> ctypes.CDLL | None:
    """The library of a file; ``None`` where there is no file, or with a warning one that fits."""
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
        problem = _misfit(found)
    except (OSError, AttributeError) as error:
        problem = str(error)
    else:
        if not problem:
            return found
    warnings.warn(
        f"Octavo's own kernels are not used: {path} is not the library that belongs to this version"
        f" ({problem}). Install Octavo again, or run `make native` in a checkout",
        OctavoWarning,
        stacklevel=2,
    )
    return None


def _misfit(found: ctypes.CDLL) -> str:
    """Why a library does not belong to this version; ``""`` where it does.

    In a checkout it may be older than the sources, of which native/compile.py takes the same
    digest.
    """
    abi = int(found.octavo_abi())
    if abi != ABI:
        return f"its interface is {abi}, this version of Octavo calls {ABI}"
    if not (SOURCES / "octavo.h").is_file():
        return ""
    parts = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()
    found.octavo_sources.restype = ctypes.c_char_p
    same = found.octavo_sources() == digest.encode()
    return "" if same else f"it was not compiled from what is in {SOURCES} now"


def obstacle() -> str:
    """Why a runtime does not call the kernels here, as a clause; ``""`` where it does.

    What is compiled for every CPU is right and slow: it has to be asked for.
    """
    if library() is None:
        return MISSING
    portable = instruction_set() == INSTRUCTION_SETS[0]
    return _SLOW if portable and not os.environ.get(LIMIT) else ""


def instruction_set() -> str | None:
    """What the kernels use here; ``None`` without a library.

    Example:
        >>> instruction_set() in (*INSTRUCTION_SETS, None)
        True
    """
    loaded = library()
    if loaded is None:
        return None
    return INSTRUCTION_SETS[-1 if loaded.octavo_amx() else loaded.octavo_isa()]
