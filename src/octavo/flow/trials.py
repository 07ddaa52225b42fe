"""Trying graphs in the places of submodules before they are believed.

Where a model runs, a graph on trial is called beside its module, with the very same arguments, and
compared with it. The model goes on with the module's results.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.flow.running import Run, run_all
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.capture.fidelity import difference
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.model.model import QuantizedModel
from octavo.model.place import Place
from octavo.model.tree import put

_ROUNDING = 1e-3  # relative, as for the example at capture


@dataclass(frozen=True)
class Candidate:
    """A module, and the graph that may take its place.

    Attributes:
        module: the float module.
        graph: what was captured of it.
        place: where it stands.
        count: how often the runs call it.
    """

    module: nn.Module
    graph: Graph
    place: Place
    count: int


def try_out(
    model: nn.Module, candidates: Mapping[str, Candidate], runs: Sequence[Run]
) -> dict[str, str]:
    """Run the model with each graph beside its module.

    Returns:
        For the graphs that cannot take their module's place, by path: why.
    """
    trials = {path: _OnTrial(candidate) for path, candidate in candidates.items()}
    for path, trial in trials.items():
        put(model, candidates[path].module, trial)
    error = ""
    try:
        run_all(model, runs)
    except Exception as problem:  # noqa: BLE001  (the user's code, which looks into its modules)
        error = f"the model does not run without its inside: {problem}"
    finally:
        for path, trial in trials.items():
            put(model, trial, candidates[path].module)
    return {path: why for path, trial in trials.items() if (why := trial.verdict() or error)}


class _OnTrial(nn.Module):
    """Stands in a module's place, and shows no more of it than a graph would."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__()
        # Not by attribute, which would register the module.
        self.__dict__["_candidate"] = candidate
        self.__dict__["_run"] = run_of(candidate.graph, candidate.graph.device)
        self.__dict__["_problem"] = ""
        self.__dict__["_calls"] = 0
        self.training = False

    def verdict(self) -> str:
        """Why the graph cannot take the module's place; ``""`` if it can."""
        called = self.__dict__["_calls"] == self.__dict__["_candidate"].count
        return self.__dict__["_problem"] or ("" if called else "the model looks at its class")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        candidate: Candidate = self.__dict__["_candidate"]
        self.__dict__["_calls"] += 1
        expected = candidate.module(*args, **kwargs)
        if not self.__dict__["_problem"]:
            self.__dict__["_problem"] = self._compared(args, kwargs, expected)
        return expected

    def _compared(self, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> str:
        graph: Graph = self.__dict__["_candidate"].graph
        try:
            results = self.__dict__["_run"](*flatten_call(graph, args, kwargs))
        except Exception as error:  # noqa: BLE001  (whatever a kernel says of other sizes)
            return f"it is called in several ways: {error}"
        result = build_output(graph, results)
        if _form(result) != _form(expected):
            return f"its graph returns a {_form(result)}, and it a {_form(expected)}"
        told = difference(_leaves(result), _leaves(expected), _ROUNDING)
        return "" if told is None else f"its graph computes something else: {told[1]}"

    def __getattr__(self, name: str) -> Any:
        candidate: Candidate = self.__dict__["_candidate"]
        kept = name in candidate.place.attributes
        if kept and name not in _OF_REGIONS:
            return candidate.place.attributes[name]
        value = getattr(candidate.module, name)
        has = "of which a region has its own" if kept else "which a graph does not have"
        self.__dict__["_problem"] = f"the model reads its {name!r}, {has}"
        return value


# What a region says of itself under the names of the module's attributes; these it says alike.
_ALIKE = {"config", "device", "main_input_name"}
_OF_REGIONS = {*dir(QuantizedModel), *QuantizedModel.__annotations__} - _ALIKE


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor | int | float)]


def _form(tree: Any) -> str:
    """The structure of a result in words, without the sizes of its tensors."""
    if isinstance(tree, Tensor):
        return str(tree.dtype).removeprefix("torch.")
    if isinstance(tree, dict):
        items = ", ".join(f"{key}: {_form(value)}" for key, value in tree.items())
        return f"{_kind(tree)}({items})"
    if isinstance(tree, list | tuple):
        return f"{_kind(tree)}({', '.join(map(_form, tree))})"
    return type(tree).__name__


def _kind(container: object) -> str:
    # An ordered dict comes back as a dict, which does all that it does but move_to_end.
    return "dict" if type(container) is OrderedDict else type(container).__name__
