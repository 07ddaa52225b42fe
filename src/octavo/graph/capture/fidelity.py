"""Is a captured graph the model? Both are called on the example, and on sizes that export assumed
away.

``torch.export`` follows one way through ``forward``. What it does not see (a faster way that
evaluation takes, chance, a number that NumPy made) makes another function of the graph.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.errors import CaptureError, OctavoWarning
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.graph import Graph
from octavo.graph.passes.training import DROPOUTS
from octavo.graph.program import run_of
from octavo.graph.quiet import quiet
from octavo.graph.records import as_records, with_objects
from octavo.graph.size_guards import Expression, Guard

# Relative errors: rounding of float32 stays below the first by far. Beyond the second the graph is
# another function by any measure.
_ROUNDING = 1e-3
_ROUNDING_OF_HALVES = 3e-2
_ANOTHER_FUNCTION = 0.1
# Batch sizes that export may exclude without need, and how many of them are tried.
_SMALL = range(1, 9)
_TRIED = 3
_FAR = range(1, 1025)


# Input and axis of sizes that are equal.
Sizes = list[tuple[str, int]]


class Faithful:
    """Compares a captured graph with the model that it was made from.

    Args:
        graph: the graph.
        model: the model; it is left as it was.
        args, kwargs: the call that it was captured with.
    """

    def __init__(
        self, graph: Graph, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.graph, self.model = graph, model
        self.args, self.kwargs = args, kwargs
        self.tensors = flatten_call(graph, args, kwargs)
        self.run = run_of(graph, graph.device)
        metas = [meta for meta in graph.metas.values() if meta is not None]
        halves = any(meta.dtype in ("bfloat16", "float16") for meta in metas)
        self.rounding = _ROUNDING_OF_HALVES if halves else _ROUNDING

    def check(self) -> None:
        """Compare both on the example.

        Raises:
            CaptureError: the graph is another function.

        Warns:
            OctavoWarning: it is nearly the same one, or the model is not a function of its inputs.
        """
        expected = self._of_model(self.tensors)
        if expected is None or _draws(self.graph):
            return
        told = difference(self._of_graph(self.tensors), expected, self.rounding)
        if told is None:
            return
        again = self._of_model(self.tensors)
        name = type(self.model).__name__
        if again is None or difference(again, expected, self.rounding) is not None:
            warnings.warn(
                f"{name} returns something else each time it is called with the same inputs; "
                "what it drew while it was captured is part of the graph: pass random numbers as "
                "an input",
                OctavoWarning,
                stacklevel=4,
            )
            return
        error, what = told
        message = (
            f"the graph of {name} is not what the model computes on the example: {what}. "
            "torch.export takes another path through forward than a call does: look for branches "
            "on torch.compiler.is_compiling(), values from NumPy or .item(), and kernels that only "
            "evaluation uses (torch.backends.mha.set_fastpath_enabled(False) switches one off)"
        )
        if error > _ANOTHER_FUNCTION:
            raise CaptureError(message)
        warnings.warn(message, OctavoWarning, stacklevel=4)

    def settled(self, doubtful: Sequence[Guard]) -> Graph:
        """The graph with those of export's doubtful assumptions that the result depends on.

        The batch sizes that they exclude are tried; where graph and model agree, they are free.
        """
        groups = list(_tied(self.graph))
        excluded = [n for n in _SMALL if self._excludes(doubtful, groups, n)]
        far = any(n not in _SMALL and self._excludes(doubtful, groups, n) for n in _FAR)
        if far or len(excluded) > _TRIED:
            return replace(self.graph, guards=(*self.graph.guards, *doubtful))
        why = "the model takes another path for that size"
        conditions = [c for n in excluded for c in self._conditions(groups, n)]
        guards = (Guard(condition, why) for condition in conditions)
        return replace(self.graph, guards=(*self.graph.guards, *guards))

    def _excludes(self, guards: Sequence[Guard], groups: Sequence[Sizes], n: int) -> bool:
        """Whether nothing but these guards stands against the batch size ``n``."""
        shapes = self._shapes(groups, n)
        return self.graph.broken_guard(shapes) is None and not all(
            guard.holds(shapes) for guard in guards
        )

    def _conditions(self, groups: Sequence[Sizes], n: int) -> Iterator[Expression]:
        """What must hold of batch sizes for graph and model to agree where one is ``n``."""
        together = self._agrees(groups, n)
        if len(groups) == 1:
            if not together:
                yield _differs(groups[0], n)
            return
        if not together:
            yield ("or", *(_differs(group, n) for group in groups))
        for index, group in enumerate(groups):
            # Trying all of many takes long: one of them is n only with the others.
            if len(groups) > _TRIED - 1 or not self._agrees([group], n):
                others = [*groups[:index], *groups[index + 1 :]]
                same = (("==", ("size", *other[0]), n) for other in others)
                yield ("or", _differs(group, n), ("and", *same))

    def _shapes(self, groups: Sequence[Sizes], n: int) -> dict[str, tuple[int, ...]]:
        shapes = {
            entry.name: list(tensor.shape)
            for entry, tensor in zip(self.graph.inputs, self.tensors, strict=True)
        }
        for name, axis in itertools.chain(*groups):
            shapes[name][axis] = n
        return {name: tuple(shape) for name, shape in shapes.items()}

    def _agrees(self, groups: Sequence[Sizes], n: int) -> bool:
        """Whether graph and model return the same for ``n`` samples, or the model nothing."""
        names = [name for name, _ in itertools.chain(*groups)]
        tensors = [
            _of_size(tensor, n) if entry.name in names else tensor
            for entry, tensor in zip(self.graph.inputs, self.tensors, strict=True)
        ]
        expected = self._of_model(tensors)
        if expected is None:
            return True
        try:
            results = self._of_graph(tensors)
        except Exception:  # noqa: BLE001  (a kernel that does not take this size)
            return False
        told = difference(results, expected, self.rounding)
        return told is None or (_draws(self.graph) and math.isfinite(told[0]))

    def _of_model(self, tensors: Sequence[Tensor]) -> list[Any] | None:
        """What the model returns, flat; ``None`` where it cannot be called so."""
        given = {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}
        args, kwargs = pytree.tree_map_only(
            Tensor,
            lambda t: given.get(id(t), t).clone(),  # type: ignore[union-attr]
            (self.args, self.kwargs),
        )
        try:
            with quiet(), left_as_it_was(self.model), torch.no_grad():
                return _values(as_records(self.model(*with_objects(args), **with_objects(kwargs))))
        except Exception:  # noqa: BLE001  (whatever the user's code raises for another size)
            return None

    def _of_graph(self, tensors: Sequence[Tensor]) -> list[Any]:
        with torch.no_grad():
            results = self.run(*(tensor.clone() for tensor in tensors))
        return _values(as_records(build_output(self.graph, results)))


def _draws(graph: Graph) -> bool:
    return any(node.short_op in DROPOUTS for node in graph.nodes)


def _differs(sizes: Sizes, n: int) -> Expression:
    return ("!=", ("size", *sizes[0]), n)


def _tied(graph: Graph) -> Iterator[Sizes]:
    """The open batch sizes, those together that a guard says are equal."""
    groups: list[Sizes] = [
        [(g.name, 0)] for g in graph.inputs if g.meta.shape and g.meta.shape[0] is None
    ]
    for guard in graph.guards:
        kind, *sides = guard.condition
        if kind == "==" and all(isinstance(s, tuple) and s[0] == "size" for s in sides):
            one, other = (
                next((g for g in groups if (side[1], side[2]) in g), None) for side in sides
            )
            if one is not None and other is not None and one is not other:
                one += other
                groups.remove(other)
    yield from groups


def _of_size(tensor: Tensor, n: int) -> Tensor:
    """The first ``n`` samples, beginning again where there are fewer."""
    times = -(-n // max(1, len(tensor)))
    return torch.cat([tensor] * times)[:n]


def _values(tree: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor | int | float)]


def difference(
    results: Sequence[Any], expected: Sequence[Any], rounding: float
) -> tuple[float, str] | None:
    """How two flat results differ: the relative error and its description; ``None`` if at most in
    rounding. The error of results that cannot be compared is infinite.
    """
    if len(results) != len(expected):
        return math.inf, f"it returns {len(results)} values, and the model {len(expected)}"
    worst: tuple[float, str] | None = None
    for index, (one, other) in enumerate(zip(results, expected, strict=True)):
        error, what = _error(one, other)
        if error > rounding and (worst is None or error > worst[0]):
            worst = error, f"output {index} {what}"
    return worst


def _error(result: Any, expected: Any) -> tuple[float, str]:
    if not (isinstance(result, Tensor) and isinstance(expected, Tensor)):
        same = type(result) is type(expected) and result == expected
        return (0.0 if same else math.inf), f"is {result!r}, not {expected!r}"
    if result.shape != expected.shape or result.dtype != expected.dtype:
        kinds = [f"{str(t.dtype)[6:]}{list(t.shape)}" for t in (result, expected)]
        return math.inf, f"is {kinds[0]}, not {kinds[1]}"
    if result.device.type == "meta" or not result.numel():
        return 0.0, ""
    if not (result.is_floating_point() or result.is_complex()):
        share = (result != expected).double().mean().item()
        return (share if share > 0.01 else 0.0), f"differs in {share:.1%} of its integers"
    invalid = result.isfinite() != expected.isfinite()
    if invalid.any():
        share = invalid.double().mean().item()
        return max(share, _ROUNDING * 2), f"is NaN or infinite in other places ({share:.1%})"
    valid = expected.isfinite()
    kind = torch.complex128 if result.is_complex() else torch.float64
    one, other = result[valid].to(kind), expected[valid].to(kind)
    size, error = other.norm().item(), (one - other).norm().item()
    relative = error / (size + 1e-7 * math.sqrt(one.numel()) + 1e-30)
    decibels = -20 * math.log10(relative) if relative else math.inf
    return relative, f"agrees with it to {decibels:.1f} dB"
