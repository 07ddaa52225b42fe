"""From a quantized graph to the content of a ``.pte`` file, and an account of what runs it.

Tested in tests/runtimes/executorch/test_export.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, nn
from torch.export import ExportedProgram

from octavo.errors import ExportError, first_line
from octavo.graph.graph import Graph
from octavo.graph.program import Step, compile_steps
from octavo.graph.qdq import is_own
from octavo.graph.quiet import quiet
from octavo.runtimes.executorch.forms import Forms, forms_of
from octavo.runtimes.executorch.package import missing_kernels, operators_of, partitioned

ANOTHER_FORMAT = "octavo.export_onnx(q, path) writes it for other runtimes"
_NODE = "octavo"  # in what torch keeps with each operator of a program
# Operators at which ExecuTorch's kernels stop when they run, or that torch.export cannot
# follow into what it knows.
_NO_FORM = {
    "conv3d": "its kernels convolve lines and images alone",
    "conv_transpose3d": "its kernels convolve lines and images alone",
    "embedding_bag": "it sums as many rows as values say",
}
# The partitioner's mark on what an integer kernel takes in.
_IMPLICIT = "IS_IMPLICIT_Q_DQ_TAG"


@dataclass(frozen=True)
class Program:
    """A program for inputs of one size.

    Attributes:
        data: the content of a ``.pte`` file.
        integer: node -> XNNPACK's integer kernel that runs it.
        floating: node -> what runs it in float.
        outside: node outside of XNNPACK's delegates -> why.
        delegates: how many parts XNNPACK runs.
        operators: those outside of them, which the app must have kernels for.
    """

    data: bytes
    integer: dict[str, str]
    floating: dict[str, str]
    outside: dict[str, str]
    delegates: int
    operators: tuple[str, ...] = ()


def program_of(graph: Graph, tensors: Sequence[Tensor]) -> Program:
    """The program for inputs of these sizes.

    Args:
        graph: in canonical QDQ form.
        tensors: one for each input; their values do not matter.

    Raises:
        ExportError: ExecuTorch has no form or no kernel for an operator.
        MissingExtra: ExecuTorch is not installed.
    """
    _require_forms(graph)
    forms = forms_of(graph)
    exported = _exported(graph, forms, tensors)
    try:
        manager, refusals = partitioned(exported)
        account = _Account(manager, forms, refusals)
        _require_kernels(manager, graph)
        with quiet():
            data = bytes(manager.to_executorch().buffer)
    except ExportError:
        raise
    except Exception as error:  # its errors share no base
        raise ExportError(
            f"ExecuTorch cannot lower the model: {first_line(error)}"
            f"{_named_in(str(error), graph)}; {ANOTHER_FORMAT}"
        ) from error
    return Program(
        data,
        account.integer,
        account.floating,
        account.outside,
        account.delegates,
        tuple(sorted(operators_of(manager))),
    )


def _require_forms(graph: Graph) -> None:
    """Refuse what would stop when it runs.

    Raises:
        ExportError: there is such an operator.
    """
    for node in graph.nodes:
        if node.short_op in _NO_FORM:
            raise ExportError(
                f"ExecuTorch has no form for {node.short_op}, the layer {node.name!r}: "
                f"{_NO_FORM[node.short_op]}; {ANOTHER_FORMAT}"
            )


def _exported(graph: Graph, forms: Forms, tensors: Sequence[Tensor]) -> ExportedProgram:
    """What torch.export makes of the steps; each operator knows the node that it belongs to.

    Raises:
        ExportError: it cannot follow them.
    """
    module = _Steps(graph.input_names(), forms)
    try:
        with quiet(), torch.fx.traceback.preserve_node_meta(), torch.no_grad():
            return torch.export.export(module, tuple(tensors), strict=False)
    except Exception as error:  # its errors share no base
        raise ExportError(f"torch.export cannot follow the model: {first_line(error)}") from error


class _Steps(nn.Module):
    """Steps as a module, which is what torch.export takes."""

    def __init__(self, inputs: Sequence[str], forms: Forms) -> None:
        super().__init__()
        for index, tensor in enumerate(forms.constants.values()):
            self.register_buffer(f"constant{index}", tensor)
        self.count = len(forms.constants)
        steps = [_known(step, forms.nodes[step.out]) for step in forms.steps]
        self.run = compile_steps([*inputs, *forms.constants], steps, forms.outputs, {})

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        constants = [self.get_buffer(f"constant{index}") for index in range(self.count)]
        return self.run(*tensors, *constants)


def _known(step: Step, node: str) -> Step:
    """The step, whose operators are marked with a node's name."""
    function = step.function

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.fx.traceback.annotate({_NODE: node}):
            return function(*args, **kwargs)

    return replace(step, function=call)


class _Account:
    """What runs which node, read from the program that ExecuTorch made."""

    def __init__(self, manager: Any, forms: Forms, refusals: Mapping[str, str]) -> None:
        module = manager.exported_program().graph_module
        self.integer: dict[str, str] = {}
        self.floating: dict[str, str] = {}
        self.outside: dict[str, str] = {}
        parts = [part.original_module for _, part in module.named_children()]
        self.delegates = len(parts)
        for part in parts:
            for name, node in _calls(part.graph):
                on_integers = _is_on_integers(node)
                kernels = self.integer if on_integers else self.floating
                kernels[name] = f"XNNPACK {_words(node)}"
        for name, node in _calls(module.graph):
            if name not in self.integer:
                self.floating[name] = f"a portable {_words(node)}"
            self.outside[name] = refusals.get(node.name, "XNNPACK has no such operator")
        for name, why in forms.in_float.items():
            if name in self.outside:
                self.outside[name] = why


def _calls(graph: torch.fx.Graph) -> Iterator[tuple[str, torch.fx.Node]]:
    """The calls of the model's own operators, each with the node that it belongs to."""
    for node in graph.nodes:
        name = _name_of(node)
        if node.op == "call_function" and name is not None and _is_the_models(node):
            yield name, node


def _is_the_models(node: torch.fx.Node) -> bool:
    """Whether a call is neither rounding, nor that of a delegate or of one of its results."""
    target = str(node.target)
    others = ("quantized_decomposed", "executorch_call_delegate", "getitem")
    return not any(other in target for other in others)


def _name_of(node: torch.fx.Node) -> str | None:
    """Of the node in Octavo's graph; operators that ExecuTorch made of others may have lost it."""
    custom = node.meta.get("custom") or {}
    name = custom.get(_NODE)
    return None if name is None else str(name)


def _is_on_integers(node: torch.fx.Node) -> bool:
    """Whether XNNPACK takes in what dequantizes its inputs."""
    read = [arg for arg in node.all_input_nodes if "dequantize" in str(arg.target)]
    return any(arg.meta.get(_IMPLICIT, False) for arg in read) or any(
        "per_token" in str(arg.target) for arg in read
    )


def _words(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[-2:][0]


def _require_kernels(manager: Any, graph: Graph) -> None:
    """Refuse a program that the runtime could not load.

    Raises:
        ExportError: it has no kernel for an operator.
    """
    missing = missing_kernels(manager)
    calls = manager.exported_program().graph.nodes
    for node in calls:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name in missing:
            name = _name_of(node)
            known = graph.by_name.get(name or "")
            where = "" if known is None else f", which the layer {name!r} ({known.short_op}) needs"
            raise ExportError(
                f"ExecuTorch has no kernel for {schema.name}{where}: {ANOTHER_FORMAT}"
            )


def _named_in(said: str, graph: Graph) -> str:
    """The layers whose operators an error names, as a clause."""
    own = (node for node in graph.nodes if not is_own(node))
    names = [node.name for node in own if re.search(rf"\b{node.short_op}\b", said)]
    return f" (at {', '.join(map(repr, names[:3]))})" if names else ""
