"""The folder that commands run in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def here(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a file of tests has prepared is the current one, and found by imports."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return prepared
