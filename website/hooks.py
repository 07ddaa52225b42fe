"""What mkdocs calls while it builds: pages and pictures that are made of the sources are added."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from website import measured, pictures, reference  # noqa: E402

# Documents of the project that stand beside `docs`, and where they are among the pages.
BESIDE = {
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "SECURITY.md": "development/security.md",
    "benchmarks/README.md": "benchmarks/method.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add what is made here to what lies in `docs`."""
    for path, text in (reference.pages() | measured.pages()).items():
        files.append(File.generated(config, path, content=text))
    for path, data in _pictures().items():
        files.append(File.generated(config, path, content=data))
    for name, path in BESIDE.items():
        if (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Links to documents beside `docs` lead to their pages."""
    above = "../" * page.file.src_uri.count("/")
    for name, path in BESIDE.items():
        markdown = markdown.replace(f"](../{name})", f"]({above}{path})")
    if page.file.src_uri in BESIDE.values():
        markdown = markdown.replace("](docs/", f"]({above}")
    return markdown


def _pictures() -> dict[str, bytes]:
    """Each picture for light and for dark pages, by its path."""
    drawn: dict[str, bytes] = {}
    for mode, palette in pictures.PALETTES.items():
        for name, draw in pictures.PICTURES.items():
            drawn[f"concepts/{name}-{mode}.svg"] = _svg(draw(palette))
        for kind in measured.kinds():
            if (kind / "speed.json").is_file():
                path = f"benchmarks/speed-{kind.name}-{mode}.svg"
                drawn[path] = _svg(measured.speed(kind, palette))
    return drawn


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()
