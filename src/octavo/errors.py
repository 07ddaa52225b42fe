"""Every error that Octavo raises on purpose.

OctavoError
├── CaptureError        the model cannot be captured as a graph
├── PlanError           a rule, a scheme or a plan does not fit the model
│   └── NothingQuantized    no layer would be quantized
├── CalibrationError    the calibration data cannot be used
├── TrainingError       training went wrong, or cannot go on
├── InputError          a call's arguments do not fit the model
│   └── CallError           a function was called with arguments that it does not have
├── ArtifactError       a file is not ours, damaged, hostile or cannot be written
├── ExportError         a model cannot be written in another format
├── RuntimeUnavailable  a runtime cannot run here, or cannot run this model
│   └── RuntimeDisagrees    it computes something else than the model says
└── MissingExtra        an optional package is not installed

Each message names the layer or tensor, the value found, and the way out. `OctavoWarning` tells what
works, though not as it might.

Tested in tests/test_display.py.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from octavo.display import plain


class OctavoError(Exception):
    """Base of all errors that Octavo raises on purpose.

    Args:
        message: what happened; what cannot be printed in the names it tells is spelled out.

    Example:
        >>> try:
        ...     octavo.quantize(model, loader)
        ... except octavo.OctavoError as error:
        ...     print(type(error).__name__)
        InputError
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(plain(message, "\n"))

    def _render_traceback_(self) -> list[str]:
        """What notebooks print: your lines that led here, without ours, and the message."""
        frames = takewhile(
            lambda frame: not frame.filename.startswith(_inside()),
            traceback.extract_tb(self.__traceback__),
        )
        yours = [frame for frame in frames if "IPython" not in Path(frame.filename).parts]
        lines = [*traceback.format_list(yours), *traceback.format_exception_only(self)]
        return [line.rstrip("\n") for line in lines]


class CaptureError(OctavoError):
    """The model cannot be captured as a graph.

    Attributes:
        cause: ``"values"`` where it stopped at the value of a tensor, ``"code"`` where it would
            whichever sizes are open, ``"call"`` where the model itself cannot be called with the
            example, else ``""``.
    """

    def __init__(self, message: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class PlanError(OctavoError):
    """A rule, a scheme or a plan does not fit the model."""


class NothingQuantized(PlanError):
    """By the rules, no layer would be quantized."""


class CalibrationError(OctavoError):
    """The calibration data cannot be used."""


class TrainingError(OctavoError):
    """Quantization-aware training went wrong, or cannot go on."""


class InputError(OctavoError):
    """A call's arguments do not fit the model."""


class CallError(InputError, TypeError):
    """A function was called with arguments that it does not have, or without one that it needs."""


class ArtifactError(OctavoError):
    """A file is not an Octavo artifact, is damaged or hostile, or cannot be written."""


class ExportError(OctavoError):
    """A model cannot be written in another format, or the file cannot be written."""


class RuntimeUnavailable(OctavoError):
    """A runtime cannot run on this machine, or cannot run this model."""


class RuntimeDisagrees(RuntimeUnavailable):
    """A runtime computes something else than the oracle, by more than rounding explains."""


class MissingExtra(OctavoError):
    """An optional package is not installed.

    Args:
        package: the name to import, for example ``"matplotlib"``.
        extra: the extra of Octavo that brings it, for example ``"plots"``.
        purpose: what it is needed for, as a clause: ``"draw the training curves"``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is needed to {purpose} and is not installed; "
            f'install it with: pip install "octavo[{extra}]"'
        )
        self.package = package
        self.extra = extra


@contextmanager
def optional_import(package: str, extra: str, purpose: str) -> Iterator[None]:
    """An import inside that fails is a `MissingExtra`, whose arguments these are.

    Args:
        package, extra, purpose: as for `MissingExtra`.

    Raises:
        MissingExtra: the package is not installed.
        OctavoError: it is, and its import fails, most often of what does not fit each other.
    """
    try:
        yield
    except OctavoError:
        raise
    except ImportError as error:
        raise MissingExtra(package, extra, purpose) from error
    except Exception as error:
        raise OctavoError(
            f"{package} is needed to {purpose}, and its import fails: {type(error).__name__}: "
            f"{first_line(error)}. It is installed, but something that it needs does not fit, "
            "say a torchvision that was made for another torch: install what fits"
        ) from error


def first_line(error: Exception) -> str:
    r"""Of what an error says; the name of its class where it says nothing.

    Args:
        error: any.

    Example:
        >>> first_line(ValueError("no such axis\nraised at Axis.cpp:7")), first_line(KeyError())
        ('no such axis', 'KeyError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


class OctavoWarning(UserWarning):
    """Something works, but not as fast or as exactly as it could.

    Args:
        message: what, and the way out.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", octavo.OctavoWarning)  # where CI has to stop at one
        >>> warnings.simplefilter("default", octavo.OctavoWarning)
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(plain(message, "\n"))


def warn_user(message: str) -> None:
    """An `OctavoWarning` of the line that called Octavo, from however deep inside of it.

    Args:
        message: what works, though not as it might, and the way out.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_inside()):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, OctavoWarning, stacklevel=level)


def _inside() -> tuple[str, ...]:
    """The folders of Octavo, and of PyTorch, whose modules call ours."""
    torch = sys.modules.get("torch")
    files = [__file__, *([torch.__file__] if torch is not None and torch.__file__ else [])]
    return tuple(f"{Path(file).parent}{os.sep}" for file in files)
