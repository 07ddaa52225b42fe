"""The package ai-edge-litert: LiteRT's interpreter, and the schema of its files.

Tested in tests/runtimes/litert/test_runtime.py.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import optional_import


def package() -> Any:
    """LiteRT's interpreter.

    Raises:
        MissingExtra: it is not installed.
    """
    with optional_import("ai-edge-litert", "litert", "write and run LiteRT models (.tflite)"):
        from ai_edge_litert import interpreter
    return interpreter
