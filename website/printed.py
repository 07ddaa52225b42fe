"""Pages whose code prints what stands below it.

``python -m website.printed docs/tutorials/*.md`` runs the Python of each page as one program, and
writes what every block prints into a block of ``text`` behind it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<printed>.*?)```\n)?", re.DOTALL)
_END = "\x1e"  # what the program prints where a block ends


def program(text: str) -> str:
    """The Python blocks as one program, every line at its own number in the page."""
    lines = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        first = text[: block.start("code")].count("\n")
        code = block["code"].splitlines()
        lines[first : first + len(code)] = code
        lines[first + len(code)] = f"print({_END!r})"
    return "\n".join(lines)


def run(page: Path, folder: Path) -> list[str]:
    """What each block of a page prints, in a new process that works in the folder.

    Raises:
        RuntimeError: it fails; the line that a traceback names is the page's.
    """
    script = folder / f"{page.stem}.py"
    # torchvision asks for one exact release of torch; line 1 of a page is its title.
    code = "import torchvision_shim" + program(page.read_text(encoding="utf-8"))
    script.write_text(code, encoding="utf-8")
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        raise RuntimeError(f"{page}:\n{done.stdout}\n{done.stderr}")
    return done.stdout.split(f"{_END}\n")[:-1]


def printed(text: str) -> list[str]:
    """What a page says that its blocks print; empty where it says nothing."""
    return [block["printed"] or "" for block in BLOCK.finditer(text)]


def with_printed(text: str, outputs: list[str]) -> str:
    """The page with what its blocks print."""
    ahead = iter(outputs)

    def block(match: re.Match[str]) -> str:
        told = next(ahead)
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{told}```\n" if told else "")

    return BLOCK.sub(block, text)


def main(pages: list[str]) -> None:
    import tempfile

    for page in map(Path, pages):
        with tempfile.TemporaryDirectory() as folder:
            outputs = run(page, Path(folder))
        page.write_text(with_printed(page.read_text(encoding="utf-8"), outputs), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
