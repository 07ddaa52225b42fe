"""Where scales can go in a whole model: in each of its blocks, and outside of them.

Tested in tests/flow/blockwise/test_finding_folds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.errors import InputError
from octavo.flow.blockwise.blocks import Chain, without_cache
from octavo.flow.blockwise.finding_folds import find_folds
from octavo.flow.blockwise.folds import Fold, alike
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.progress import track
from octavo.quantization.weights import Rescaling, WeightMethod

_NAMED = 4  # layers in a note


@dataclass(frozen=True)
class Folds:
    """Those of a model.

    Attributes:
        by_block: path of a block, ``""`` for what is outside of all -> its folds.
    """

    by_block: Mapping[str, list[Fold]]

    @classmethod
    def none(cls) -> Folds:
        """Of a model of which no input is scaled."""
        return cls({})

    @classmethod
    def of(
        cls,
        model: nn.Module,
        run: Callable[[nn.Module], object],
        chains: Sequence[Chain],
        layers: Mapping[str, FloatLayer],
        progress: bool = False,
    ) -> Folds:
        """Find them.

        Args:
            model: in float.
            run: calls it.
            chains: its blocks, ready to run.
            layers: those that become integers, by their paths.
            progress: show a progress bar on a terminal.

        Raises:
            InputError: something outside of a block reads what is scaled there.
        """

        def result() -> Tensor:
            return first_floats(run(model))

        shared, by_block = shared_parameters(model), dict[str, list[Fold]]()
        rest = dict(layers)
        with torch.no_grad(), without_cache(model):
            blocks = [(chain, path) for chain in chains for path in chain.blocks]
            for chain, path in track(blocks, "finding where scales can go", progress):
                inside = {at: one for at, one in layers.items() if at.startswith(f"{path}.")}
                rest = {at: one for at, one in rest.items() if at not in inside}
                ran = partial(chain.run_once, path)
                by_block[path] = find_folds(chain.blocks[path], ran, inside, shared)
            by_block[""] = find_folds(model, result, rest, shared)
            exact = result()
            with ExitStack() as stack:
                for fold in (fold for folds in by_block.values() for fold in folds):
                    stack.enter_context(fold.tried())
                if not alike(exact, result(), next(model.parameters()).dtype):
                    raise InputError(
                        "scaling the inputs of layers changes what this model returns, since "
                        "something outside of a block reads what is scaled in it: leave methods "
                        "that scale (AWQ, SmoothQuant) out of weights="
                    )
        return cls(by_block)

    def unscaled(
        self, methods: Sequence[WeightMethod], layers: Mapping[str, FloatLayer]
    ) -> Iterator[tuple[str, str]]:
        """The methods that scale, by name, and layers that each could not reach, by path."""
        reached = {
            path for folds in self.by_block.values() for fold in folds for path in fold.paths
        }
        for method in (method for method in methods if isinstance(method, Rescaling)):
            for at, one in layers.items():
                if method.fits(one.layer) and at not in reached:
                    yield method.name, at


def told_of_unscaled(unscaled: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each method."""
    return [
        f"{name} left the inputs of {some(at)} as they are: nothing before them can take scales"
        for name, at in unscaled.items()
    ]


def some(paths: Sequence[str]) -> str:
    """A few of the paths, and how many others there are."""
    more = len(paths) - _NAMED
    return ", ".join(map(repr, paths[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def first_floats(result: object) -> Tensor:
    """The first tensor of floats that a model returns."""
    leaves = pytree.tree_leaves(result)
    return next(x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())


def shared_parameters(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules hold, or one module in several places."""
    seen, shared = set[int](), set[int]()
    for _, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
