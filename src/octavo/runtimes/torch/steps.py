"""Steps before they become one function: what nothing reads is left out, what is constant is
computed once, and no kernel writes to memory that is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Ref, refs_in
from octavo.graph.program import Step
from octavo.graph.qdq import DEQUANTIZE_WEIGHT, UNPACK
from octavo.quantization.bfloat16 import CAST
from octavo.runtimes.torch.native_runs import in_long_runs
from octavo.runtimes.torch.remembered import fixed_by_sizes, with_remembered


@dataclass(frozen=True)
class Placed:
    """A step, with what its memory is shared with.

    Attributes:
        step: what is called.
        overwrites: argument whose memory the result takes over.
        moves: argument whose memory the result may be in.
    """

    step: Step
    overwrites: str | None = None
    moves: str | None = None


def tidied(
    placed: Sequence[Placed],
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, Tensor],
) -> tuple[list[Step], dict[str, Tensor]]:
    """The steps that are needed, those that programs can do behind each other, and what depends on
    sizes alone in one; and the constants with those that could be computed.
    """
    needed = in_long_runs(_pruned(placed, outputs), lambda item: item.step)
    fixed = fixed_by_sizes([item.step for item in needed], inputs, constants)
    safe = with_safe_memory(needed, [*outputs, *fixed.tensors])
    steps, known = _with_folded_constants(safe, constants)
    return with_remembered(steps, fixed, outputs, known), known


def _pruned(placed: Sequence[Placed], outputs: Sequence[str]) -> list[Placed]:
    """Without the steps whose results nothing reads."""
    needed = set(outputs)
    kept = []
    for item in reversed(placed):
        if item.step.out in needed:
            kept.append(item)
            needed.update(refs_in((item.step.args, item.step.kwargs)))
    return kept[::-1]


def with_safe_memory(placed: Sequence[Placed], outputs: Sequence[str]) -> list[Step]:
    """The steps, where a kernel overwrites only memory that nothing reads afterwards."""
    last_read: dict[str, int] = dict.fromkeys(outputs, len(placed))
    for index, item in enumerate(placed):
        for name in refs_in((item.step.args, item.step.kwargs)):
            last_read[name] = max(index, last_read.get(name, 0))
    memory: dict[str, str] = {}  # a value -> the first that was where it is
    read_until: dict[str, int] = {}  # such a first value -> the last step that reads there
    steps = []
    for index, item in enumerate(placed):
        step = item.step
        shared = item.overwrites or item.moves or step.out
        first = memory.get(shared, shared)
        if item.overwrites is not None:
            read_now = [name for name in refs_in(step.args) if memory.get(name) == first]
            if read_until[first] > index or len(read_now) > 1:
                step = replace(step, function=_on_a_copy(step, item.overwrites))
                first = step.out
        memory[step.out] = first
        read_until[first] = max(read_until.get(first, 0), last_read.get(step.out, 0))
        steps.append(step)
    return steps


def _on_a_copy(step: Step, overwritten: str) -> Callable[..., Tensor]:
    position = [index for index, arg in enumerate(step.args) if arg == Ref(overwritten)][-1]
    function = step.function

    def call(*args: object) -> Tensor:
        arguments = list(args)
        tensor = arguments[position]
        assert isinstance(tensor, Tensor)
        arguments[position] = tensor.clone()
        result: Tensor = function(*arguments)
        return result

    return call


def _with_folded_constants(
    steps: list[Step], constants: Mapping[str, Tensor]
) -> tuple[list[Step], dict[str, Tensor]]:
    """Weights that are read as floats are dequantized, and cast, now, once."""
    known = dict(constants)
    kept = []
    readers = [operators.resolve(name) for name in (DEQUANTIZE_WEIGHT, UNPACK, CAST)]
    for step in steps:
        names = list(refs_in(step.args))
        if step.function in readers and names and all(name in known for name in names):
            args = [known[arg.name] if isinstance(arg, Ref) else arg for arg in step.args]
            known[step.out] = step.function(*args)
        else:
            kept.append(step)
    return kept, known
