"""The colours of all pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours by what they are for, as Matplotlib takes them.

    Attributes:
        ink: text and axes.
        faint: grid lines, and what is only a reference.
        first, second, third: series; they differ in lightness too, for those who see no hues.
        bad: what is clipped, lost or beyond a limit.
    """

    ink: str = "#1f2328"
    faint: str = "#b6bcc4"
    first: str = "#0b6bb3"
    second: str = "#e08a1e"
    third: str = "#1d9a6c"
    bad: str = "#c8361d"


PAPER = Palette()  # for white backgrounds
