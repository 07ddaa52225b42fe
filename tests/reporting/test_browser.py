"""The page in a real browser: nothing is fetched, nothing fails, tables sort, all can be read.

Skipped without Chromium, which CI installs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no Chromium here"
)


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; what it asked for and what went wrong must be nothing."""
    tab = browser.new_page(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda sent: troubles.append(sent.url))
    tab.goto(file.as_uri())
    yield tab
    fetched = [one for one in troubles if one != file.as_uri() and not one.startswith("data:")]
    assert fetched == []
    tab.close()


def test_anybody_can_read_it(opened: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened)
    problems = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found.response["violations"]
    ]
    assert problems == []


def test_pictures_are_drawn(opened: Any) -> None:
    width = "images => images.map(one => one.naturalWidth)"
    charts = opened.eval_on_selector_all("figure > img", width)
    assert len(charts) > 8
    assert min(charts) > 100
    samples = opened.eval_on_selector_all(".pictures img", width)
    assert samples == [8] * 6  # images of 8 x 8, read as PNG
    assert opened.locator("img:not([alt])").count() == 0


def test_a_table_sorts_by_keyboard(opened: Any) -> None:
    table = opened.locator("#errors table")
    header = table.locator("th", has_text="SQNR dB")

    def column() -> list[float]:
        return [float(text) for text in table.locator("tbody td:nth-child(4)").all_inner_texts()]

    before = column()
    header.locator("button").focus()
    opened.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before) != before
    opened.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    opened.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") is None
    assert column() == before


def test_the_graph_has_a_dot_beside_each_row(opened: Any) -> None:
    rows = opened.locator("#graph ol li")
    dots = opened.locator("#graph circle")
    assert rows.count() == dots.count() > 3
    for place in (0, rows.count() - 1):
        row, dot = rows.nth(place).bounding_box(), dots.nth(place).bounding_box()
        assert abs((row["y"] + row["height"] / 2) - (dot["y"] + dot["height"] / 2)) < 2


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, file: Path) -> None:
    phone = browser.new_page(viewport={"width": 380, "height": 800})
    phone.goto(file.as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380
    phone.close()
