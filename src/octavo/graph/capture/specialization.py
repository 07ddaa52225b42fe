"""What ``torch.export`` took for granted about sizes, as guards of the graph.

Export runs ``forward`` with a symbol for each open size. Where Python or a kernel asks something of
a symbol, export answers for the example and notes a guard. Some guards say nothing of the result:
export never lets a size be 0 or 1, and its own arithmetic on strides asks whether a product is 1.
These are kept apart as doubtful; `octavo.graph.capture.fidelity` tries the sizes that they exclude.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch.export import ExportedProgram

from octavo.errors import CaptureError
from octavo.graph.size_guards import Expression, Guard

_OPERATORS = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Max": "max",
    "Min": "min",
    "Equality": "==",
    "Unequality": "!=",
    "StrictLessThan": "<",
    "LessThan": "<=",
    "StrictGreaterThan": ">",
    "GreaterThan": ">=",
    "And": "and",
    "Or": "or",
    "Not": "not",
}
_EXACT = ("==", "and", "or")
# Parts of a condition on sizes: one of more is no longer one that anybody reads, and sizes that
# are computed from it take export minutes.
_LONGEST = 60


@dataclass(frozen=True)
class Specialized:
    """The guards of an export.

    Attributes:
        guards: what the sizes of a call must satisfy.
        doubtful: what export assumes as well, though the result may not depend on it.
    """

    guards: tuple[Guard, ...] = ()
    doubtful: tuple[Guard, ...] = ()


class NotedGuards(list[Any]):
    """Export's list of guards, which notes the line of the user's code that made it add each.

    A guard itself knows the line that asked, which is torch's own where an operator did.

    Args:
        is_users: whether a source file is the user's.
        exporting: the code of the function that exports; what calls it is no code of the model's.
    """

    def __init__(self, is_users: Callable[[str], bool], exporting: CodeType | None = None) -> None:
        super().__init__()
        self.is_users, self.exporting = is_users, exporting
        self.lines: list[str] = []
        self.too_long = False

    def watch(self, *_: Any) -> None:
        """Take the place of the list of the export under way; a hook for the first module."""
        mode = torch._guards.active_fake_mode()
        self.take(mode.shape_env if mode is not None else None)

    def take(self, environment: Any) -> None:
        """Take the place of the list of guards that export keeps in its ``ShapeEnv``."""
        if environment is not None and environment.guards is not self:
            for guard in environment.guards:
                self.append(guard)
            environment.guards = self

    def append(self, guard: Any) -> None:
        """Note a guard, and where it came from.

        Raises:
            CaptureError: what it says of sizes is too long.
        """
        super().append(guard)
        frame = sys._getframe(1)
        while frame.f_back is not None and not self._is_outermost(frame.f_code):
            frame = frame.f_back
        code = frame.f_code
        in_users_code = self.is_users(code.co_filename)
        self.lines.append(
            _line(code.co_filename, frame.f_lineno, code.co_name) if in_users_code else ""
        )
        self.too_long = self.too_long or _is_too_long(guard.expr)
        self.check()

    def _is_outermost(self, code: CodeType) -> bool:
        return code is self.exporting or self.is_users(code.co_filename)

    def check(self) -> None:
        """Stop an export that computes with sizes at length.

        Raises:
            CaptureError: one of the guards is too long.
        """
        if self.too_long:
            where = f" at {self.lines[-1]}" if self.lines[-1] else ""
            raise CaptureError(f"what forward computes from its sizes{where} is too long to follow")

    def is_torchs_own(self, guard: Any) -> bool:
        """Whether torch asked, and not the user's code itself."""
        place = guard.sloc.framework_loc
        return not (hasattr(place, "filename") and self.is_users(place.filename))


def _is_too_long(expression: Any) -> bool:
    parts, count = [expression], 0
    while parts and count <= _LONGEST:
        parts += parts.pop().args
        count += 1
    return bool(parts)


def _line(file: str, number: int | None, function: str) -> str:
    """A line's place, short of the folders that are only on the user's machine."""
    return f"{'/'.join(Path(file).parts[-2:])}:{number} ({function})"


@dataclass(frozen=True)
class Symbols:
    """The symbols of the inputs' open sizes.

    Attributes:
        sizes: symbol -> input and axis.
        examples: symbol -> the size during export.
        environment: where export keeps the guards; ``None`` where no size is open.
    """

    sizes: Mapping[Any, tuple[str, int]]
    examples: Mapping[Any, int]
    environment: Any

    @classmethod
    def of(cls, program: ExportedProgram) -> Symbols:
        sizes: dict[Any, tuple[str, int]] = {}
        examples: dict[Any, int] = {}
        environment = None
        names = set(program.graph_signature.user_inputs)
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op != "placeholder" or node.name not in names:
                continue
            for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt):
                    symbol = size.node._expr  # as it was before guards replaced it
                    sizes.setdefault(symbol, (node.name, axis))
                    examples[symbol] = size.node.hint
                    environment = size.node.shape_env
        return cls(sizes, examples, environment)


def specialized(symbols: Symbols, noted: NotedGuards) -> Specialized:
    """All that an export assumed about the sizes of its inputs."""
    noted.take(symbols.environment)
    guards: dict[Expression, Guard] = {}
    doubtful: dict[Expression, Guard] = {}
    for guard, line in zip(noted, noted.lines, strict=True):
        why = f"forward depends on it at {line}" if line else "an operator of the model needs it"
        for condition in _conditions(guard.expr, symbols):
            certain = condition[0] in _EXACT or not noted.is_torchs_own(guard)
            kept = guards if certain else doubtful
            kept.setdefault(condition, Guard(condition, why))
    for symbol, value in symbols.examples.items():
        # Export has no guard for its assumption that a size is neither 0 nor 1.
        condition = ("!=", ("size", *symbols.sizes[symbol]), 1)
        if value > 1:
            doubtful.setdefault(condition, Guard(condition, "it was captured with more than one"))
    return Specialized(tuple(guards.values()), tuple(doubtful.values()))


def _conditions(expression: Any, symbols: Symbols) -> list[Expression]:
    """A guard of export's as an expression of sizes; where there is none, the sizes are fixed."""
    about = [symbol for symbol in symbols.sizes if symbol in expression.free_symbols]
    if len(about) < len(expression.free_symbols):
        return []  # of strides, which no result depends on, or of a size that forward computes
    try:
        return [_translated(expression, symbols)]
    except (NotImplementedError, TypeError):
        fixed = sorted(about, key=str)
        return [("==", ("size", *symbols.sizes[s]), symbols.examples[s]) for s in fixed]


def _translated(expression: Any, symbols: Symbols) -> Expression:
    if expression in symbols.sizes:
        return ("size", *symbols.sizes[expression])
    if expression.is_Integer:
        return int(expression)
    kind = type(expression).__name__
    if kind == "FloorDiv" and expression.args[1].is_Symbol and expression.args[0].is_polynomial():
        upper, by = expression.args
        whole = ((upper - by + 1) / by).expand()
        if whole.is_polynomial() and whole.is_integer:  # a product divided by a factor, upwards
            return _translated(whole, symbols)
    args = [_translated(arg, symbols) for arg in expression.args]
    if kind == "Identity":
        return args[0]
    if kind == "CeilDiv":
        return ("*", -1, ("//", ("*", -1, args[0]), args[1]))
    if kind == "ModularIndexing":
        return ("%", ("//", args[0], args[1]), args[2])
    if kind in ("Pow", "PowByNatural") and isinstance(args[1], int) and 1 < args[1] < 9:
        return ("*", *[args[0]] * args[1])
    if kind not in _OPERATORS:
        raise NotImplementedError(kind)
    return (_OPERATORS[kind], *args)
