from __future__ import annotations

import io
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import InputError
from octavo.progress import telling, track, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Of which a test moves the hands."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("octavo.progress.time", made)
    return made


def logged(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None = None) -> io.StringIO:
    """Standard error from here on; in a fixture pytest would put its own in place."""
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def awaited(stream: io.StringIO, word: str) -> bool:
    """Whether a word is shown, if need be in a moment."""
    for _ in range(500):
        if word in stream.getvalue():
            return True
        time.sleep(0.02)
    return False


def test_a_log_gets_a_line_now_and_then(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    for _ in track(range(1000), "calibrating"):
        clock.now += 1
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["calibrating: 5 of 1000, 5 s", "calibrating: 10 of 1000, 10 s"]
    assert lines[-1].endswith("of 1000, 16 min")
    assert len(lines) == 40
    assert "".join(lines).isprintable()


def test_of_a_generator_a_log_tells_how_many(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    for _ in track((x for x in "abc"), "reading\x1b"):
        clock.now += 4000
    assert log.getvalue() == "reading\\x1b: 1, 67 min\nreading\\x1b: 2, 2.2 h\n"


@pytest.mark.parametrize(("step", "enabled"), [(1, True), (100, False)], ids=["short", "off"])
def test_a_log_gets_nothing(
    step: int, enabled: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logged(monkeypatch)
    with telling("searching", enabled) as tell:
        for _ in track("abcd", "calibrating", enabled):
            clock.now += step
            tell("1 tried")
    assert not log.getvalue()


def test_what_has_bars_of_its_own_tells_lines_in_a_terminal_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = logged(monkeypatch, Terminal())
    with telling("searching") as tell:
        for number in range(4):
            clock.now += 3
            tell(f"{number} tried")
    assert terminal.getvalue() == "searching: 1 tried, 6 s\nsearching: 3 tried, 12 s\n"


def test_a_notebook_shows_one_bar_that_moves(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    published: list[tuple[dict[str, str], str, bool]] = []

    def publish(data: dict[str, str], *, transient: dict[str, str], update: bool) -> None:
        published.append((data, transient["display_id"], update))

    shell: Any = SimpleNamespace(kernel=1, display_pub=SimpleNamespace(publish=publish))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    for _ in track(["a", "b", "c"], "reading <it>"):
        clock.now += 1
    bar = '<progress aria-label="reading &lt;it&gt;: 1 of 3" value="0.333"></progress>'
    assert [data["text/html"] for data, _, _ in published] == [
        f"{bar} reading &lt;it&gt;: 1 of 3, 1 s",
        f"{bar.replace('1 of', '2 of').replace('333', '667')} reading &lt;it&gt;: 2 of 3, 2 s",
        "",
    ]
    assert [data["text/plain"] for data, _, _ in published][1] == "reading <it>: 2 of 3, 2 s"
    assert [update for _, _, update in published] == [False, True, True]
    assert len({key for _, key, _ in published}) == 1
    assert not log.getvalue()


def test_a_clock_shows_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = logged(monkeypatch, Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("octavo.progress.PATIENCE_S", 0.0)
    streams = sys.stdout, sys.stderr
    with waiting("capturing [red]it"):
        assert awaited(terminal, "capturing [red]it")
        assert (sys.stdout, sys.stderr) == streams
    with pytest.raises(InputError), waiting("stopping"):
        raise InputError("no")


def test_a_log_tells_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    monkeypatch.setattr("octavo.progress.PAUSE_S", 0.001)
    monkeypatch.setattr("octavo.progress.LOG_S", 0.0)
    with waiting("capturing"):
        assert awaited(log, "capturing, 0 s\n")


@pytest.mark.parametrize(
    ("stream", "enabled", "patience"),
    [(Terminal(), True, 100.0), (Terminal(), False, 0.0), (io.StringIO(), True, 100.0)],
    ids=["done before", "not wanted", "done before in a log"],
)
def test_no_clock_shows(
    stream: io.StringIO, enabled: bool, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(monkeypatch, stream)
    monkeypatch.setattr("octavo.progress.PATIENCE_S", patience)
    monkeypatch.setattr("octavo.progress.LOG_S", patience)
    before = set(threading.enumerate())
    with waiting("capturing", enabled):
        pass
    assert not stream.getvalue()
    assert set(threading.enumerate()) <= before  # those of other tests may end meanwhile
