"""The pages of `make docs`: every public name is in the reference, and a real browser shows them.

The browser's tests are run by `make docs`, on the site that it has built.
"""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reporting.test_browser import CHROMIUM, FLAGS, browser  # noqa: F401  (the fixture)

from website import reference

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"
SHOWN = (
    "index.html",
    "start/first_model.html",
    "concepts/ranges.html",
    "reference/quantize.html",
    "reference/commands.html",
    "benchmarks/avx512-vnni-bf16.html",
    "troubleshooting.html",
    "coming_from.html",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 380, "height": 800}
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no Chromium here"
)


def test_every_public_name_stands_in_one_group() -> None:
    assert reference.ungrouped() == set()
    listed = " ".join(names for _, names in reference.GROUPS.values()).split()
    assert len(listed) == len(set(listed))


def test_every_command_stands_in_the_reference() -> None:
    page = reference.commands()
    assert all(f"## octavo {name}\n" in page for name in ("quantize", "search", "serve"))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the built site is served."""
    if not (SITE / "index.html").is_file():
        pytest.fail("there is no site: make docs builds it")
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Watched:
    """A tab; what it says on its console, and what it asks of others, must be nothing."""

    def __init__(self, browser: Any, address: str, scheme: str, size: dict[str, int]) -> None:  # noqa: F811
        self.address = address
        self.tab = browser.new_page(color_scheme=scheme, viewport=size)
        self.troubles: list[str] = []
        self.tab.on("console", lambda message: self.troubles.append(message.text))
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.tab.on("request", lambda sent: self._asked(sent.url))
        self.tab.on("requestfailed", self._failed)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.troubles.append(url)

    def _failed(self, sent: Any) -> None:
        if "ERR_ABORTED" not in (sent.failure or ""):  # which is that the next page was opened
            self.troubles.append(f"failed: {sent.url}")

    def open(self, page: str) -> Any:
        self.tab.goto(f"{self.address}/{page}")
        return self.tab


@pytest.mark.website
@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read_by_anybody(browser: Any, address: str, scheme: str) -> None:  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    problems = []
    for size in (DESKTOP, PHONE):
        watched = Watched(browser, address, scheme, size)
        for page in SHOWN:
            found = Axe().run(watched.open(page))
            problems += [
                f"{page}, {size['width']}: {one['id']}: {node['html'][:160]} "
                f"{[a['message'] for a in node['any']][:1]}"
                for one in found.response["violations"]
                for node in one["nodes"]
            ]
        assert watched.troubles == []
        watched.tab.close()
    assert problems == []


@pytest.mark.website
@in_a_browser
def test_every_page_opens_and_fits_on_a_phone(browser: Any, address: str) -> None:  # noqa: F811
    watched = Watched(browser, address, "light", PHONE)
    pages = [path.relative_to(SITE).as_posix() for path in sorted(SITE.rglob("*.html"))]
    assert len(pages) > 30
    for page in pages:
        tab = watched.open(page)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 380, page
        missing = tab.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        assert missing == [], page
    assert watched.troubles == []


@pytest.mark.website
@in_a_browser
def test_a_search_finds_a_function(browser: Any, address: str) -> None:  # noqa: F811
    watched = Watched(browser, address, "light", DESKTOP)
    tab = watched.open("index.html")
    tab.locator(".md-search__input").click()
    tab.keyboard.type("layer_errors")
    tab.locator(".md-search-result__item a").first.wait_for()
    assert "measure.html" in tab.locator(".md-search-result__item a").first.get_attribute("href")
    assert watched.troubles == []
