"""A recipe: a job of several commands, written down in one file of TOML.

Each table is a command, and its keys are the command's options::

    [quantize]
    model = "mymodels:build"
    calibration = "x.npz"
    output = "model.octavo"

    [export]
    out = "model.onnx"

Tested in tests/cli/test_run.py.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import InputError
from octavo.model.files.source_file import check_file, reason

COMMANDS = (
    *("quantize", "search", "inspect", "verify", "compare", "debug", "sensitivity", "report"),
    *("tune", "bench", "export"),
)
"""Commands that a recipe may hold: those that end by themselves, and work on a model."""

_FIRST = ("quantize", "search")  # they make the file that others work on
_TABLE = re.compile(r"\s*\[\[?\s*([^\]]*?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*[.=]""")


@dataclass(frozen=True)
class Step:
    """One command of a recipe.

    Attributes:
        command: its name.
        settings: its options, by the names that a command line has, without dashes in front.
        place: where it stands, for messages: ``"recipe.toml, line 3, [export]"``.
        lines: the line of each of its keys.
    """

    command: str
    settings: Mapping[str, Any]
    place: str
    lines: Mapping[str, int]

    def words(self, parameters: Sequence[Any], inherited: Mapping[str, Any]) -> list[str]:
        """The command line that it means.

        Args:
            parameters: what the command takes, as click describes it.
            inherited: arguments that it has from steps before, where it does not say them itself.

        Raises:
            InputError: it has no such option, or a value that no command line can hold.
        """
        taken = {_name(parameter): parameter for parameter in parameters}
        unknown = next((key for key in self.settings if key not in taken), None)
        if unknown is not None:
            close = difflib.get_close_matches(unknown, taken, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(taken)}"
            raise InputError(
                f"{self.at(unknown)}: octavo {self.command} has no {unknown!r}; {hint}"
            )
        options: list[str] = []
        arguments: list[str] = []
        for name, parameter in taken.items():
            is_argument = parameter.param_type_name == "argument"
            of_model = name == "weights" and "model" not in self.settings
            before = inherited.get(name) if is_argument or of_model else None
            value = self.settings.get(name, before)
            if value is None:
                continue
            if is_argument:
                arguments += self._texts(name, value)
            elif isinstance(value, bool):
                options += [f"--{name}"] * value
            else:
                options += [f"--{name}={text}" for text in self._texts(name, value)]
        return [*options, "--", *arguments]

    def at(self, key: str) -> str:
        """Where a key stands, for messages."""
        file = self.place.split(",")[0]
        return f"{file}, line {self.lines[key]}" if key in self.lines else self.place

    def _texts(self, key: str, value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        for one in values:
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                raise InputError(f"{self.at(key)}: {key} is {one!r}; give a text or a number")
        return [str(one) for one in values]


def read(path: Path) -> list[Step]:
    """The steps of a recipe, in the order in which the file has them.

    Args:
        path: a file of TOML.

    Raises:
        InputError: it cannot be read, holds no command, or something else than commands.
    """
    content = _content(path)
    lines = dict(_lines(path.read_text(encoding="utf-8").splitlines()))
    steps = [step for name in content for step in _steps(path, name, content[name], lines)]
    if not steps:
        raise InputError(f"{path} holds no step: begin with a table [quantize]")
    return sorted(steps, key=lambda step: step.lines[""])


def _content(path: Path) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise InputError(
            f"{path}: recipes are TOML, which Python reads from 3.11 on, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: take a newer one, or call the commands"
        )
    import tomllib

    try:
        check_file(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML's own errors are ValueErrors, and name the line
        raise InputError(f"cannot read the recipe {path}: {reason(error)}") from None


def _lines(lines: Sequence[str]) -> Iterator[tuple[tuple[str, int, str], int]]:
    """(table, which of its name, key) -> line; the key ``""`` is the table itself.

    TOML's reader keeps no lines; a table or key that is written in another way than one a line
    has none here, and is told of by its table.
    """
    table, seen = "", dict[str, int]()
    for number, line in enumerate(lines, start=1):
        if head := _TABLE.match(line):
            table = head[1].strip("\"'")
            seen[table] = seen.get(table, -1) + 1
            yield (table, seen[table], ""), number
        elif key := _KEY.match(line):
            yield (table, seen.get(table, 0), key[1].replace("_", "-")), number


def _steps(
    path: Path, name: str, value: Any, lines: Mapping[tuple[str, int, str], int]
) -> Iterator[Step]:
    for index, settings in enumerate(value if isinstance(value, list) else [value]):
        own = {
            key: line
            for (table, which, key), line in lines.items()
            if (table, which) == (name, index)
        }
        line = own.get("", lines.get(("", 0, name), 1))
        place = f"{path}, line {line}, [{name}]"
        if name not in COMMANDS or not isinstance(settings, dict):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"one of {', '.join(COMMANDS)}"
            raise InputError(f"{place} is no step of a recipe; {hint}")
        plain = {key.replace("_", "-"): value for key, value in settings.items()}
        yield Step(name, plain, place, {**own, "": line})


def inherited(step: Step, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps behind one need not say again: the model, its weights, the file.

    Args:
        step: the one that is done.
        before: what it has got itself.
    """
    if step.command not in _FIRST:
        return dict(before)
    own = {key: step.settings[key] for key in ("model", "weights") if key in step.settings}
    if step.command == "search":
        made = str(Path(str(step.settings.get("out", "")), "best.octavo"))
    else:
        made = str(step.settings.get("output", ""))
    return {**own, "file": made, "files": made}


def _name(parameter: Any) -> str:
    """How a recipe calls an option: by its long name."""
    long = [option for option in parameter.opts if option.startswith("--")]
    return max(long, key=len)[2:] if long else str(parameter.name).replace("_", "-")
