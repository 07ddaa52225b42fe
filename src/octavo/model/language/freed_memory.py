"""Memory of tensors that are gone, for the system.

Tested in tests/flow/blockwise/test_folder.py; measured by `benchmarks.large_folder` and
`benchmarks.decoding`.
"""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Let the system have the pages of tensors that are gone.

    The C library keeps those below its limit for mapped memory (up to 32 MB) in its heap, where one
    block's small objects keep the next block's tensors out of the holes: half a model, in the end.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl needs none
        if trim is not None:
            trim(0)
