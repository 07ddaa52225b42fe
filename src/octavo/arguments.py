"""Arguments of another kind than a public function takes: one clear error for each.

Example:
    >>> expect(COUNT, threads="2")
    Traceback (most recent call last):
    octavo.errors.InputError: threads is '2': give a whole number of 1 or more
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from octavo.errors import CallError, InputError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        fits: whether a value is of the kind.
        way_out: what to give, as a clause; or a function that says it of a value.
    """

    fits: Callable[[Any], bool]
    way_out: str | Callable[[Any], str]

    def way_out_of(self, value: Any) -> str:
        """What to give in place of a value."""
        return self.way_out if isinstance(self.way_out, str) else self.way_out(value)


def expect(kind: Kind, **values: Any) -> None:
    """Refuse what is of another kind.

    Args:
        kind: what they have to be.
        values: the arguments, by their names.

    Raises:
        InputError: one is of another kind.
    """
    for name, value in values.items():
        if not kind.fits(value):
            raise InputError(f"{name} is {described(value)}: {kind.way_out_of(value)}")


def optional(kind: Kind, **values: Any) -> None:
    """`expect`, where ``None`` is allowed.

    Raises:
        InputError: one is of another kind.
    """
    expect(kind, **{name: value for name, value in values.items() if value is not None})


def expect_repeatable(needed: str, **data: Any) -> None:
    """Refuse what is no iterable of batches, or can be iterated only once.

    Args:
        needed: who needs it again, as a clause.
        data: the arguments, by their names; ``None`` is allowed.

    Raises:
        InputError: one is such data.
    """
    optional(BATCHES, **data)
    for name, batches in data.items():
        if batches is not None and iter(batches) is batches:
            raise InputError(
                f"{name} can be iterated only once, and {needed}: pass a list or a DataLoader"
            )


def of(*types: type, way_out: str | Callable[[Any], str]) -> Kind:
    """The instances of some types."""
    return Kind(lambda value: isinstance(value, types), way_out)


def meant(name: str, names: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """What to write in place of a name that there is not.

    Args:
        name: what was written.
        names: what there is.
        others: what is called so elsewhere, and what to write here for it.

    Example:
        >>> meant("weight-only", ("static", "weight_only"))
        "did you mean 'weight_only'? There is 'static', 'weight_only'"
        >>> meant("ort", ("torch", "onnxruntime"), {"ort": "write 'onnxruntime'"})
        "write 'onnxruntime'"
    """
    names = list(names)
    if others and name.lower() in others:
        return others[name.lower()]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    there_is = f"there is {', '.join(map(repr, names))}"
    return f"did you mean {close[0]!r}? {there_is.capitalize()}" if close else there_is


def called_rightly(**elsewhere: str) -> Callable[[F], F]:
    """A public function that says, of a call which does not fit its signature, how it is called.

    Args:
        elsewhere: keywords that others have for what this one takes in another way, and how.

    Example:
        >>> @called_rightly(data="pass batches=")
        ... def fold(model, *, batches=None): ...
        >>> fold(None, batchs=[])
        Traceback (most recent call last):
        octavo.errors.CallError: octavo.fold has no argument 'batchs': did you mean batches=?
        >>> fold(None, data=[])
        Traceback (most recent call last):
        octavo.errors.CallError: octavo.fold has no argument 'data': pass batches=
    """

    def decorated(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                told = _misfit(function.__name__, signature, args, kwargs, elsewhere)
                raise CallError(told or f"octavo.{function.__name__}: {error}") from None
            return function(*args, **kwargs)

        return cast(F, call)

    return decorated


def _misfit(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> str | None:
    """Why a call does not fit a signature, and how to mend it."""
    parameters = list(signature.parameters.values())
    unknown = next((key for key in kwargs if key not in signature.parameters), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, signature.parameters, n=1, cutoff=0.7)
        hint = elsewhere.get(unknown) or (f"did you mean {close[0]}=?" if close else None)
        hint = hint or f"it takes {', '.join(signature.parameters)}"
        return f"octavo.{name} has no argument {unknown!r}: {hint}"
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if len(args) > len(positional):
        extra = described(args[len(positional)])
        return (
            f"octavo.{name} takes {', '.join(positional)} by place, and got {len(args)} "
            f"arguments: give {extra} by its keyword, one of "
            f"{', '.join(f'{p.name}=' for p in parameters[len(positional) :]) or 'none'}"
        )
    bound = signature.bind_partial(*args, **kwargs).arguments
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in bound]
    if not missing:
        return None
    needed = (p for p in parameters if p.default is p.empty)
    first = [p.name for p in needed if p.kind is not p.KEYWORD_ONLY]
    keywords = [f"{part}=..." for part in missing if part not in first]
    return (
        f"octavo.{name} needs {' and '.join(missing)}: "
        f"octavo.{name}({', '.join([*first, *keywords])})"
    )


_LONGEST_TEXT = 40  # that is shown whole


def described(value: object) -> str:
    """What it is, in words.

    Example:
        >>> described(None), described(dict), described({}), described(0), described("int8")
        ('None', 'the class dict', 'a dict', '0', "'int8'")
    """
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT:
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _is_batches(value: Any) -> bool:
    no_batches = (Tensor, str, bytes, Mapping, nn.Module, type)
    is_array = type(value).__module__ == "numpy"
    return isinstance(value, Iterable) and not is_array and not isinstance(value, no_batches)


def _is_count(value: Any) -> bool:
    return _is_index(value) and value >= 1


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _to_batches(value: Any) -> str:
    kind = type(value)
    if isinstance(value, Dataset):
        return "give its batches, torch.utils.data.DataLoader(dataset, batch_size=32)"
    if kind.__module__ == "numpy":
        return "give a list of batches, [torch.from_numpy(array)]"
    if isinstance(value, Tensor):
        return "give an iterable of batches, a DataLoader or a list such as [images]"
    if inspect.isgeneratorfunction(value):
        return f"call it, {value.__name__}()"
    return "give an iterable of batches, a DataLoader or a list such as [images]"


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and not _is_of_a_shell(value) and not _is_cut(value)


def _is_of_a_shell(path: Any) -> bool:
    """Whether it names a folder called "~", where a shell would put the user's own."""
    return os.fsdecode(path).startswith("~/")


def _is_cut(path: Any) -> bool:
    return "\0" in os.fsdecode(path)


def _to_path(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        return "give a path, a str or a pathlib.Path"
    if _is_cut(value):
        return "no file has a null character in its name"
    return "outside of a shell ~ is a folder like any other: os.path.expanduser(path) is your own"


BATCHES = Kind(_is_batches, _to_batches)
COUNT = Kind(_is_count, "give a whole number of 1 or more")
SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "give a number from 0 to 1")
INTEGER = Kind(_is_index, "give a whole number")
NUMBER = Kind(_is_number, "give a number")
NAMES = Kind(_is_names, 'give a list of names, ["torch"]')
TEXT = of(str, way_out="give its name, a str")
FUNCTION = Kind(callable, "give a function")
FILE = of(
    *(str, os.PathLike),
    way_out="give the path of a file; q.save(path) writes a quantized model to one",
)
PATH = Kind(_is_path, _to_path)
