from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InputError, OctavoError, OctavoWarning
from octavo.shown import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("größe 深 [/x] :smile:", "größe 深 [/x] :smile:"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b2J", r"\x9b2J"),  # one character, the same command
        ("a\u202ecod.exe", r"a\u202ecod.exe"),  # turns the direction
        ("\udcff.octavo", r"\udcff.octavo"),  # a file's name that is no text
        ("\x00\x7f\u2028", r"\x00\x7f\u2028"),
    ],
)
def test_by_hand(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_all_of_it_can_be_printed(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(text, "\n").replace("\n", "").isprintable()
    assert plain(text).encode().decode() == plain(text)


def test_errors_and_warnings_are_plain() -> None:
    for kind in (OctavoError, InputError, OctavoWarning):
        assert str(kind("no layer \x1b[2J\nat all")) == "no layer \\x1b[2J\nat all"
