"""Silence for one thread, which leaves nothing behind."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

import pytest

from octavo.graph.quiet import quiet


@pytest.fixture
def state() -> object:
    return process()


def process() -> object:
    """What must not change."""
    return list(warnings.filters), warnings.showwarning, logging.root.manager.disable


def test_warnings_and_torchs_logs_are_silent_here_alone(
    capsys: pytest.CaptureFixture[str], state: object
) -> None:
    elsewhere = threading.Thread(target=_speak, args=("elsewhere",))
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("torch").addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            _speak("before")
            with quiet():
                _speak("inside")
                elsewhere.start()
                elsewhere.join()
                logging.getLogger("app").critical("of an application")
            _speak("after")
    finally:
        logging.getLogger("torch").removeHandler(handler)
    assert [str(one.message) for one in seen] == ["before", "elsewhere", "after"]
    words = capsys.readouterr().err.split()
    assert {"before", "elsewhere", "after"} <= set(words)
    assert "inside" not in words
    assert not handler.filters
    assert process() == state


def _speak(text: str) -> None:
    warnings.warn(text, stacklevel=1)
    logging.getLogger("torch.some.part").error(text)


def test_a_catch_warnings_that_crosses_it_keeps_nothing_of_it() -> None:
    """Another thread's comes in between and goes later, the case that catch_warnings gets wrong."""
    before = list(warnings.filters)
    silent, other = quiet(), warnings.catch_warnings()
    silent.__enter__()
    other.__enter__()
    silent.__exit__(None, None, None)
    assert list(warnings.filters) == before
    other.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_many_threads_leave_nothing(state: object) -> None:
    def repeatedly() -> None:
        for _ in range(200):
            with quiet():
                warnings.warn("inside", stacklevel=1)

    threads = [threading.Thread(target=repeatedly) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process() == state
