"""What depends on sizes alone is computed once for each: positions, their embeddings, causal masks.

Tested in tests/runtimes/torch/test_remembered.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Ref, refs_in
from octavo.graph.program import Step, compile_steps
from octavo.runtimes.torch.native_runs import Either

MOST_SIZES = 8  # that are remembered
MOST_BYTES = 2**24  # of what is remembered for one; more is computed at each call
_SIZE = torch.ops.aten.sym_size.int


@dataclass(eq=False)
class Remembered:
    """A function of numbers, whose results are kept for those that it met last.

    Attributes:
        compute: what makes tensors of them.
    """

    compute: Callable[..., tuple[Any, ...]]
    _kept: dict[Any, tuple[Any, ...]] = field(default_factory=dict)

    def __call__(self, *numbers: Any) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():  # a compiler's numbers are no keys, its tensors no values
            return self.compute(*numbers)
        key = tuple((type(number), number) for number in numbers)
        results = self._kept.get(key)
        if results is None:
            with torch.inference_mode(False), torch.no_grad():
                results = self.compute(*numbers)
            if sum(x.nbytes for x in results if isinstance(x, Tensor)) <= MOST_BYTES:
                self._kept = dict([*self._kept.items(), (key, results)][-MOST_SIZES:])
        return results


@dataclass(frozen=True)
class Fixed:
    """What is the same at each call with inputs of the same sizes.

    Attributes:
        numbers: sizes, and what is computed of them.
        tensors: names of the others.
    """

    numbers: frozenset[str]
    tensors: frozenset[str]


def fixed_by_sizes(
    steps: Sequence[Step], inputs: Collection[str], constants: Collection[str]
) -> Fixed:
    """Found by walking through steps that are in order."""
    numbers: set[str] = set()
    tensors: set[str] = set()
    for step in steps:
        read = set(refs_in((step.args, step.kwargs)))
        if step.function is _SIZE:
            if read <= set(inputs):
                numbers.add(step.out)
        elif read and read <= numbers and _is_of_python(step):
            numbers.add(step.out)
        elif read <= {*numbers, *tensors, *constants} and _is_pure(step.function):
            tensors.add(step.out)
    return Fixed(frozenset(numbers), frozenset(tensors))


def _is_of_python(step: Step) -> bool:
    """Whether it is arithmetic of numbers, which makes a number."""
    return not isinstance(step.function, torch._ops.OpOverload) and all(
        isinstance(arg, Ref | int | float) for arg in step.args
    )


def _is_pure(function: Callable[..., Any]) -> bool:
    if not isinstance(function, torch._ops.OpOverload):
        return True
    seeded = torch.Tag.nondeterministic_seeded in function.tags
    return not seeded and not function._schema.is_mutable


def with_remembered(
    steps: Sequence[Step],
    fixed: Fixed,
    outputs: Sequence[str],
    constants: Mapping[str, Tensor],
) -> list[Step]:
    """The steps, with one call in place of all whose results are fixed by sizes.

    What leaves the model is a copy: it is the caller's, also where it is but a view.
    """
    members = [step for step in steps if step.out in fixed.tensors]
    first = [step for step in steps if step.out in fixed.numbers]
    rest = [step for step in steps if step.out not in {*fixed.tensors, *fixed.numbers}]
    read = {*outputs, *(name for step in rest for name in refs_in((step.args, step.kwargs)))}
    needed = [step.out for step in members if step.out in read]
    if len(members) < 2 or not needed:
        return list(steps)
    numbers = [
        name
        for name in dict.fromkeys(n for s in members for n in refs_in((s.args, s.kwargs)))
        if name in fixed.numbers
    ]
    compute = compile_steps(numbers, members, needed, constants)
    whole = f"{needed[0]}.remembered"
    together = Step(whole, Remembered(compute), tuple(map(Ref, numbers)))
    parts = _parts(whole, needed, outputs)
    return [*first, together, *parts, *_without_shared_results(rest, fixed.tensors, outputs)]


def _without_shared_results(
    steps: Sequence[Step], remembered: Collection[str], outputs: Sequence[str]
) -> Iterator[Step]:
    """The steps, where no output is in memory that is remembered."""
    shared = set(remembered)
    for step in steps:
        if not (_may_be_view(step.function) and shared & set(refs_in((step.args, step.kwargs)))):
            yield step
            continue
        shared.add(step.out)
        if step.out in outputs:
            yield replace(step, out=f"{step.out}.kept")
            yield Step(step.out, torch.clone, (Ref(f"{step.out}.kept"),))
        else:
            yield step


def _may_be_view(function: Callable[..., Any]) -> bool:
    plain = function.plain if isinstance(function, Either) else function
    if isinstance(plain, torch._ops.OpOverload):
        return any(result.alias_info is not None for result in plain._schema.returns)
    return plain is getitem


def _parts(whole: str, names: Sequence[str], outputs: Sequence[str]) -> Iterator[Step]:
    for index, name in enumerate(names):
        if name in outputs:
            yield Step(f"{name}.kept", getitem, (Ref(whole), index))
            yield Step(name, torch.clone, (Ref(f"{name}.kept"),))
        else:
            yield Step(name, getitem, (Ref(whole), index))
