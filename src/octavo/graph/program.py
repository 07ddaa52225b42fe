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

from octavo.errors import OctavoError
from octavo.graph import operators
from octavo.graph.graph import Graph, Node, Ref, map_refs, refs_in


@dataclass(frozen=True, slots=True)
class Step:
    """One call: ``out = function(*args, **kwargs)``; a `Ref` in the arguments is a value."""

    out: str
    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def run_of(
    graph: Graph, device: torch.device | str = "cpu", outputs: Sequence[str] | None = None
) -> Callable[..., tuple[Any, ...]]:
    """A function that runs every node as it is written: of a quantized graph the oracle.

    It takes the graph's input tensors, in order, and returns its flat results, or those values that
    ``outputs`` names.
    """
    wanted = graph.output_names() if outputs is None else outputs
    return compile_steps(graph.input_names(), steps_of(graph, device), wanted, graph.constants)


def steps_of(graph: Graph, device: torch.device | str = "cpu") -> list[Step]:
    """The graph's nodes as they stand; a device among the arguments becomes ``device``."""
    return [step_of(node, torch.device(device)) for node in graph.nodes]


def step_of(node: Node, device: torch.device) -> Step:
    """A node as it stands; a device among the arguments becomes ``device``."""

    def placed(arg: Any) -> Any:
        if isinstance(arg, torch.device):
            return device
        if isinstance(arg, list | tuple):
            return type(arg)(placed(item) for item in arg)
        return arg

    kwargs = {key: placed(value) for key, value in node.kwargs.items()}
    return Step(node.name, operators.resolve(node.op), placed(node.args), kwargs)


@torch.no_grad()
def computed(node: Node, values: Mapping[str, Any]) -> Any:
    """What a node makes of values, by their names."""
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: values[ref.name])
    return operators.resolve(node.op)(*args, **kwargs)


def compile_steps(
    inputs: Sequence[str],
    steps: Sequence[Step],
    outputs: Sequence[str],
    constants: Mapping[str, Tensor],
) -> Callable[..., tuple[Any, ...]]:
    """One function from the input tensors, in order, to the tuple of outputs."""
    text = _Text(constants, {name: f"v{index}" for index, name in enumerate(inputs)})
    dead = _dead_after(steps, outputs)
    lines = [f"def run({', '.join(text.variables.values())}):"]
    for index, step in enumerate(steps):
        call = text.call(step)
        text.variables[step.out] = f"v{len(inputs) + index}"
        lines.append(f"    {text.variables[step.out]} = {call}")
        released = [text.variables[n] for n in dead[index] if text.variables[n].startswith("v")]
        if released:
            lines.append(f"    {' = '.join(released)} = None")
    lines.append(f"    return ({''.join(f'{text.variable(name)}, ' for name in outputs)})")
    exec("\n".join(lines), text.bound)  # noqa: S102  (see above: the text is all ours)
    function: Callable[..., tuple[Any, ...]] = text.bound["run"]
    return function


def _dead_after(steps: Sequence[Step], outputs: Sequence[str]) -> list[list[str]]:
    """For each step, the values that nothing after it needs."""
    last_use = {
        name: index
        for index, step in enumerate(steps)
        for name in (*refs_in((step.args, step.kwargs)), step.out)
    }
    dead: list[list[str]] = [[] for _ in steps]
    for name, index in last_use.items():
        if name not in outputs:
            dead[index].append(name)
    return dead


@dataclass
class _Text:
    """Names for values and bound objects, and the text of calls on them."""

    constants: Mapping[str, Tensor]
    variables: dict[str, str]
    bound: dict[str, Any] = field(default_factory=dict)

    def call(self, step: Step) -> str:
        """``f1(v0, a2, key=a3)``."""
        arguments = [self._argument(arg) for arg in step.args]
        for key, value in step.kwargs.items():
            if not key.isidentifier() or keyword.iskeyword(key):
                raise OctavoError(f"{key!r} is not the name of an operator's argument")
            arguments.append(f"{key}={self._argument(value)}")
        return f"{self._bind(step.function, 'f')}({', '.join(arguments)})"

    def variable(self, name: str) -> str:
        """The name of a value; a constant is bound at its first use."""
        if name not in self.variables:
            self.variables[name] = self._bind(self.constants[name], "c")
        return self.variables[name]

    def _argument(self, arg: Any) -> str:
        if isinstance(arg, Ref):
            return self.variable(arg.name)
        if isinstance(arg, list | tuple) and any(True for _ in refs_in(arg)):
            items = ", ".join(self._argument(item) for item in arg)
            return f"[{items}]" if isinstance(arg, list) else f"({items},)"
        return self._bind(arg, "a")

    def _bind(self, value: Any, prefix: str) -> str:
        name = f"{prefix}{len(self.bound)}"
        self.bound[name] = value
        return name
