"""Running a graph: a list of steps becomes one flat Python function.

The function's text holds only names made here (``v1 = f1(v0, a3)``): operators, constants and
arguments are bound as objects and never written into it, so a graph from a file is data. Values
are released after their last use, as in the eager model.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo import operators
from octavo.errors import OctavoError
from octavo.graph import Graph, Ref, refs_in


@dataclass(frozen=True, slots=True)
class Step:
    """One call: ``out = function(*args, **kwargs)``; a `Ref` in the arguments is a value."""

    out: str
    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def steps_of(graph: Graph, device: torch.device | str = "cpu") -> list[Step]:
    """The graph's nodes as they stand; a device among the arguments becomes ``device``."""
    device = torch.device(device)

    def placed(arg: Any) -> Any:
        if isinstance(arg, torch.device):
            return device
        if isinstance(arg, list | tuple):
            return type(arg)(placed(item) for item in arg)
        return arg

    return [
        Step(
            node.name,
            operators.resolve(node.op),
            placed(node.args),
            {key: placed(value) for key, value in node.kwargs.items()},
        )
        for node in graph.nodes
    ]


def compile_steps(
    inputs: Sequence[str],
    steps: Sequence[Step],
    outputs: Sequence[str],
    constants: Mapping[str, Tensor],
) -> Callable[..., tuple[Any, ...]]:
    """One function from the input tensors, in order, to the tuple of outputs."""
    bound: dict[str, Any] = {}
    variables = {name: f"v{i}" for i, name in enumerate(inputs)}

    def bind(value: Any, prefix: str) -> str:
        name = f"{prefix}{len(bound)}"
        bound[name] = value
        return name

    def variable(name: str) -> str:
        if name not in variables:
            variables[name] = bind(constants[name], "c")
        return variables[name]

    def text(arg: Any) -> str:
        if isinstance(arg, Ref):
            return variable(arg.name)
        if isinstance(arg, list | tuple) and any(True for _ in refs_in(arg)):
            items = ", ".join(text(item) for item in arg)
            return f"[{items}]" if isinstance(arg, list) else f"({items},)"
        return bind(arg, "a")

    def identifier(key: str) -> str:
        if not key.isidentifier() or keyword.iskeyword(key):
            raise OctavoError(f"{key!r} is not the name of an operator's argument")
        return key

    last_use = {
        name: index
        for index, step in enumerate(steps)
        for name in (*refs_in((step.args, step.kwargs)), step.out)
    }
    for name in outputs:
        last_use.pop(name, None)
    lines = [f"def run({', '.join(variables.values())}):"]
    for index, step in enumerate(steps):
        arguments = [text(arg) for arg in step.args]
        arguments += [f"{identifier(key)}={text(value)}" for key, value in step.kwargs.items()]
        read = list(dict.fromkeys(refs_in((step.args, step.kwargs))))
        variables[step.out] = f"v{len(inputs) + index}"
        call = f"{bind(step.function, 'f')}({', '.join(arguments)})"
        lines.append(f"    {variables[step.out]} = {call}")
        dead = [
            variables[name]
            for name in (*read, step.out)
            if last_use.get(name) == index and variables[name].startswith("v")
        ]
        if dead:
            lines.append(f"    {' = '.join(dead)} = None")
    lines.append(f"    return ({''.join(variable(name) + ', ' for name in outputs)})")
    exec("\n".join(lines), bound)  # noqa: S102  (see above: the text is all ours)
    function: Callable[..., tuple[Any, ...]] = bound["run"]
    return function
