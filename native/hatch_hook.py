"""What hatchling does beside packing Python files: compile the kernels and put them into the wheel.

Without a C compiler the wheel has none, and fits every platform.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

LIBRARY = "src/octavo/numerics/native/kernels.so"


class NativeKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        script = [sys.executable, str(root / "native" / "compile.py")]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(done.stderr)
        elif version != "editable":
            build_data["artifacts"].append(f"/{LIBRARY}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_of(root / LIBRARY)}"


def platform_of(library: Path) -> str:
    """The oldest platform that a library runs on: that of the C library whose symbols it wants."""
    tags = list(platform_tags())
    newest = next((tag for tag in tags if not tag.startswith("linux_")), tags[0])
    wanted = re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())
    if not newest.startswith("manylinux_") or not wanted:
        return newest
    minor = max(17, *map(int, wanted))  # pip knows none before 2.17
    return re.sub(r"^manylinux_2_\d+", f"manylinux_2_{minor}", newest)
