"""What mkdocs calls while it builds: pages, pictures and notebooks that are made of the sources are
added."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from website import measured, notebooks, pictures, reference  # noqa: E402

# Documents of the project that stand beside `docs`, and where they are among the pages.
BESIDE = {
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "SECURITY.md": "development/security.md",
    "benchmarks/README.md": "benchmarks/method.md",
}
TUTORIALS = "tutorials/"  # pages whose code runs; but for the index they are notebooks, too


def on_files(files: Files, config: Any) -> Files:
    """Add what is made here to what lies in `docs`."""
    for page in [file for file in files.documentation_pages() if _runs(file.src_uri)]:
        content = notebooks.notebook(page.content_string)
        files.append(File.generated(config, _notebook(page.src_uri), content=content))
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
    """Links to documents beside `docs` lead to their pages; what runs offers its notebook."""
    if _runs(page.file.src_uri):
        title, _, rest = markdown.partition("\n")
        name = Path(_notebook(page.file.src_uri)).name
        link = f'[As a notebook]({name}){{ .md-button download="{name}" }}'
        markdown = f"{title}\n\n{link}\n{rest}"
    above = "../" * page.file.src_uri.count("/")
    for name, path in BESIDE.items():
        markdown = markdown.replace(f"](../{name})", f"]({above}{path})")
    if page.file.src_uri in BESIDE.values():
        markdown = markdown.replace("](docs/", f"]({above}")
    return markdown


def _runs(path: str) -> bool:
    return path.startswith(TUTORIALS) and not path.endswith("/index.md")


def _notebook(path: str) -> str:
    return Path(path).with_suffix(".ipynb").as_posix()


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
