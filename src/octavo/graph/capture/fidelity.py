"""Is a captured graph the model? Both are called on the example, and on sizes that export assumed
away.

``torch.export`` follows one way through ``forward``. What it does not see (a faster way that
evaluation takes, chance, a number that NumPy made) makes another function of the graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.errors import CaptureError, OctavoWarning
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.capture.changes import changed, state_of
from octavo.graph.capture.parameter_data import values_kept
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.capture.uncallable import refuse_uncallable
from octavo.graph.graph import Graph
from octavo.graph.open_sizes import Sizes, tied
from octavo.graph.passes.training import DROPOUTS
from octavo.graph.program import run_of
from octavo.graph.quiet import quiet
from octavo.graph.records import as_records, with_objects
from octavo.graph.size_guards import Expression, Guard, sizes_in

# Relative errors: rounding of float32 stays below the first by far. Beyond the second the graph is
# another function by any measure.
_ROUNDING = 1e-3
_ROUNDING_OF_HALVES = 3e-2
_ANOTHER_FUNCTION = 0.1
# Of the example, where the model takes any number: they tell as much as all of them.
_SAMPLES = 3
# Sizes that export may exclude without need, and how many of them are tried.
_SMALL = range(1, 9)
_TRIED = 3
_FAR = (*range(1, 1025), 10**9 + 7)  # the last is beyond any bound
_NEAR = range(1, 65)
_MOST_GROUPS = 6
_SHOWN = 3  # attributes in a message
# Ways to write that something is at least two: the comparison, which side is a number, and which.
_AT_LEAST_TWO = ((">=", 1, 2), (">", 1, 1), ("<=", 0, 2), ("<", 0, 1))
# From the example's size to another.
_OTHER_SIZES: Sequence[Callable[[int], int]] = (
    lambda size: size - 1 if size > 1 else 2,
    lambda size: size + 1,
    lambda size: max(1, size // 2),
    lambda size: 2 * size,
)


class Faithful:
    """Compares a captured graph with the model that it was made from.

    Args:
        graph: the graph.
        model: the model; it is left as it was.
        args, kwargs: the call that it was captured with.
        written: parameters that ``forward`` changes.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        written: Sequence[str] = (),
    ) -> None:
        self.graph, self.model = graph, model
        self.args, self.kwargs = args, kwargs
        self.example = flatten_call(graph, args, kwargs)
        self.tensors = self.example
        self.run = run_of(graph, graph.device)
        metas = [meta for meta in graph.metas.values() if meta is not None]
        halves = any(meta.dtype in ("bfloat16", "float16") for meta in metas)
        self.rounding = _ROUNDING_OF_HALVES if halves else _ROUNDING
        self._known: dict[Any, bool | None] = {}
        self._written = {name: model.get_parameter(name) for name in written}
        self._stored: list[str] | None = None  # not known before the first call

    def check(self) -> bool:
        """Compare both on the example; whether they could be compared, and are the same.

        Raises:
            CaptureError: the graph is another function, or the model cannot be called so.

        Warns:
            OctavoWarning: it is nearly the same one, or the model is not a function of its inputs.
        """
        few = self._few_samples()
        if few is not None and not _draws(self.graph) and self._agree(few):
            self.tensors = few
            return True
        expected = self._of_model(self.tensors)
        if expected is None and self._is_safe(self.tensors):
            refuse_uncallable(self.model, self.args, self.kwargs)
        if expected is None or _draws(self.graph):
            return False
        told = difference(self._of_graph(self.tensors), expected, self.rounding)
        if told is None:
            return True
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
            return False
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
        return False

    def refuse_memory(self) -> None:
        """Refuse a model whose calls depend on those before, by what ``forward`` stores in it.

        Raises:
            CaptureError: the second call of the same inputs returns something else.
        """
        stored = self._stored or []
        if not (stored or self._written):
            return
        first, second = (self._of_model(self.tensors, calls) for calls in (1, 2))
        same = first is None or (second and difference(second, first, self.rounding) is None)
        if same:
            return
        if self._written:
            raise CaptureError(
                f"{type(self.model).__name__} changes {', '.join([*self._written][:_SHOWN])} at "
                "each call, and a graph keeps nothing between calls: leave the parameter as it is, "
                "and compute what is used of it, as in F.linear(x, self.weight * factor)",
                "code",
            )
        raise CaptureError(
            f"{type(self.model).__name__} keeps in {', '.join(stored[:_SHOWN])} what its next call "
            "depends on: a graph keeps nothing between calls. Give forward that state as an "
            "argument, and return the new one; or quantize the parts around it",
            "code",
        )

    def _few_samples(self) -> list[Tensor] | None:
        """The first samples of the example; ``None`` where it has no more, or has to have all."""
        batch = {(name, 0) for name in self.graph.input_names()[:1]}
        group = next((group for group in tied(self.graph) if batch & set(group)), None)
        if group is None or self._size(group) <= _SAMPLES:
            return None
        sizes = {group: _SAMPLES}
        broken = self.graph.broken_guard(self._shapes(sizes))
        return self._tensors(sizes) if broken is None else None

    def settled(self, doubtful: Sequence[Guard]) -> Graph:
        """The graph with those of export's doubtful assumptions that the result depends on.

        Sizes that they exclude are tried; where graph and model agree, they are free.
        """
        groups = tied(self.graph)
        graph = self.graph
        for guard in self._needed(doubtful, groups):
            graph = replace(graph, guards=(*graph.guards, guard))
        return graph

    def check_elsewhere(self, graph: Graph) -> None:
        """Compare both where all open sizes are others: the first such that the model takes.

        Args:
            graph: with the guards that it shall have.

        Raises:
            CaptureError: the graph is another function there.
        """
        groups = tied(self.graph)
        for change in _OTHER_SIZES:
            sizes = {group: change(self._size(group)) for group in groups}
            if graph.broken_guard(self._shapes(sizes)) is not None:
                continue
            tensors = self._tensors(sizes)
            expected = self._of_model(tensors)
            if expected is None:
                continue
            if not self._agrees(sizes):
                given = ", ".join(str(list(tensor.shape)) for tensor in tensors)
                raise CaptureError(
                    f"the graph of {type(self.model).__name__} is not what the model computes on "
                    f"inputs of other sizes, {given}"
                )
            return

    def _needed(self, doubtful: Sequence[Guard], groups: Sequence[Sizes]) -> Iterator[Guard]:
        """What remains of doubtful guards: as they are, or about single sizes."""
        excluded: dict[int, dict[Sizes, None]] = {}
        for guard in doubtful:
            about = set(sizes_in(guard.condition))
            involved = [group for group in groups if group & about]
            if not involved:  # of sizes that are fixed after all
                continue
            few = self._few_excluded(guard, involved[0]) if len(involved) == 1 else None
            if few is None and not self._is_needless(guard, involved):
                yield guard
            for n in few or ():
                excluded.setdefault(n, {})[involved[0]] = None
        why = "the model takes another path for that size"
        for n, those in excluded.items():
            yield from (Guard(condition, why) for condition in self._conditions(list(those), n))

    def _few_excluded(self, guard: Guard, group: Sizes) -> list[int] | None:
        """The values of a size that a guard excludes; ``None`` if these are many."""
        shapes = {name: list(shape) for name, shape in self._shapes({}).items()}
        values: list[int] = []
        for n in _FAR:
            for name, axis in group:
                shapes[name][axis] = n
            if not guard.holds(shapes) and self.graph.broken_guard(shapes) is None:
                if n not in _SMALL or len(values) == _TRIED:
                    return None
                values.append(n)
        return values

    def _is_needless(self, guard: Guard, groups: Sequence[Sizes]) -> bool:
        """Whether graph and model agree where a guard excludes one number, or none and one.

        They are compared on the first, middle and last sizes that it excludes and the model takes:
        all alike, one of them small, and pairs that are.
        """
        if not _is_about_one_number(guard.condition):
            return False
        ways: list[Mapping[Sizes, int]] = [dict.fromkeys(groups, n) for n in _NEAR]
        ways += [{group: n} for group in groups for n in _SMALL]
        pairs = product(combinations(groups, 2), permutations(_SMALL, 2))
        ways += [dict(zip(pair, sizes, strict=True)) for pair, sizes in pairs]
        against = [sizes for sizes in ways if self._excludes(guard, sizes)]
        middle = len(against) // 2
        tried = (against, against[middle:] + against[:middle], against[::-1])
        return all(_first_compared(map(self._compared, some)) for some in tried)

    def _excludes(self, guard: Guard, sizes: Mapping[Sizes, int]) -> bool:
        """Whether nothing but this guard stands against sizes."""
        shapes = self._shapes(sizes)
        return not guard.holds(shapes) and self.graph.broken_guard(shapes) is None

    def _conditions(self, groups: Sequence[Sizes], n: int) -> Iterator[Expression]:
        """What must hold of sizes for graph and model to agree where one is ``n``."""
        if len(groups) > _MOST_GROUPS:  # trying all takes long
            if not self._agrees(dict.fromkeys(groups, n)):
                yield ("or", *(_differs(group, n) for group in groups))
            return
        free = []
        for group in groups:
            if self._agrees({group: n}):
                free.append(group)
                continue
            others = [other for other in groups if other is not group]
            with_one = [other for other in others if self._agrees({group: n, other: n})]
            same = [_equals(other, n) for other in with_one]
            if not same and len(others) > 1 and self._agrees(dict.fromkeys(groups, n)):
                same = [("and", *(_equals(other, n) for other in others))]
            yield ("or", _differs(group, n), *same) if same else _differs(group, n)
        if len(free) > 1 and not self._agrees(dict.fromkeys(free, n)):
            yield ("or", *(_differs(group, n) for group in free))

    def _size(self, group: Sizes) -> int:
        """What a size is in what both are compared on."""
        name, axis = next(iter(group))
        return self.tensors[self.graph.input_names().index(name)].shape[axis]

    def _shapes(self, sizes: Mapping[Sizes, int]) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs where some sizes differ from those compared on."""
        shapes = {
            entry.name: list(tensor.shape)
            for entry, tensor in zip(self.graph.inputs, self.tensors, strict=True)
        }
        for group, n in sizes.items():
            for name, axis in group:
                shapes[name][axis] = n
        return {name: tuple(shape) for name, shape in shapes.items()}

    def _tensors(self, sizes: Mapping[Sizes, int]) -> list[Tensor]:
        shapes = self._shapes(sizes)
        return [
            _of_shape(tensor, shapes[entry.name])
            for entry, tensor in zip(self.graph.inputs, self.example, strict=True)
        ]

    def _agrees(self, sizes: Mapping[Sizes, int]) -> bool:
        """Whether graph and model return the same for these sizes, or the model nothing."""
        return self._compared(sizes) is not False

    def _compared(self, sizes: Mapping[Sizes, int]) -> bool | None:
        """The same; ``None`` where the model returns nothing."""
        key = frozenset(sizes.items())
        if key not in self._known:
            self._known[key] = self._agree(self._tensors(sizes))
        return self._known[key]

    def _agree(self, tensors: Sequence[Tensor]) -> bool | None:
        expected = self._of_model(tensors)
        if expected is None:
            return None
        try:
            results = self._of_graph(tensors)
        except Exception:  # noqa: BLE001  (a kernel that does not take this size)
            return False
        told = difference(results, expected, self.rounding)
        return told is None or (_draws(self.graph) and math.isfinite(told[0]))

    def _of_model(self, tensors: Sequence[Tensor], calls: int = 1) -> list[Any] | None:
        """What the last of some calls of the model returns, flat; ``None`` where one fails."""
        given = {id(old): new for old, new in zip(self.example, tensors, strict=True)}
        if not self._is_safe(tensors):
            return None
        call = (self.args, self.kwargs)
        try:
            with (
                quiet(),
                left_as_it_was(self.model),
                values_kept(self._written.values()),
                torch.no_grad(),
            ):
                before = state_of(self.model) if self._stored is None else None
                for _ in range(calls):
                    args, kwargs = pytree.tree_map_only(
                        Tensor,
                        lambda t: given.get(id(t), t).clone(),  # type: ignore[union-attr]
                        call,
                    )
                    result = self.model(*with_objects(args), **with_objects(kwargs))
                if before is not None:
                    self._stored = changed(self.model, before)
                return _values(as_records(result))
        except Exception:  # noqa: BLE001  (whatever the user's code raises for another size)
            return None

    def _is_safe(self, tensors: Sequence[Tensor]) -> bool:
        """Whether no bags are such as end the process in torch's kernels: the graph looks first."""
        if all(node.short_op != "embedding_bag" for node in self.graph.nodes):
            return True
        try:
            self._of_graph(tensors)
        except ValueError:
            return False
        except Exception:  # noqa: BLE001  (which is not about bags)
            return True
        return True

    def _of_graph(self, tensors: Sequence[Tensor]) -> list[Any]:
        with torch.no_grad():
            results = self.run(*(tensor.clone() for tensor in tensors))
        return _values(as_records(build_output(self.graph, results)))


def _is_about_one_number(condition: Expression) -> bool:
    """Whether it says that something is not one number, or is neither none nor one."""
    kind, *sides = condition
    either = ((kind, index, side) for index, side in enumerate(sides) if isinstance(side, int))
    return kind == "!=" or any(part in _AT_LEAST_TWO for part in either)


def _first_compared(results: Iterator[bool | None]) -> bool:
    """The first that is not ``None``; ``False`` without."""
    return next((result for result in results if result is not None), False)


def _draws(graph: Graph) -> bool:
    return any(node.short_op in DROPOUTS for node in graph.nodes)


def _differs(sizes: Sizes, n: int) -> Expression:
    return ("!=", ("size", *min(sizes)), n)


def _equals(sizes: Sizes, n: int) -> Expression:
    return ("==", ("size", *min(sizes)), n)


def _of_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first values along each axis, beginning again where there are fewer."""
    for axis, size in enumerate(shape):
        times = -(-size // max(1, tensor.shape[axis]))
        tensor = torch.cat([tensor] * times, axis) if times > 1 else tensor
        tensor = tensor.narrow(axis, 0, size)
    return tensor


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
