"""Does a runtime compute what the model says? End to end, against the oracle.

The bound is derived: how far the oracle is from itself with some of its integers moved by a step
(`octavo.runtimes.perturbation`). What is farther off than that computes something else, and the
graph cut into its layers tells where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, RuntimeUnavailable
from octavo.graph.batches import size_of
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.numerics.sqnr import sqnr_db
from octavo.runtimes.lowered import Agreement, Lowered
from octavo.runtimes.perturbation import perturbed

Batch = Sequence[Tensor]

# What agrees mostly does so within the first draw. What does not gets more: where the error of a
# sample hangs on few of its values, one draw may be far from the next.
_DRAWS = 8
_QUICK_DRAWS = 2  # which leave out the values between two integers
_MARGIN = 4.0  # of noise power, since that many draws are few
NEAR_DB = 90.0  # nearer than this nothing has to be derived
_OTHER_DECISIONS = 0.02  # share of integer results, class numbers say, that may differ anyway


def agreement(graph: Graph, lowered: Lowered, batches: Sequence[Batch]) -> Agreement | None:
    """Compare what a runtime made of a graph with the oracle.

    ``None`` where the oracle itself cannot run on these inputs.

    Args:
        graph: the quantized graph, whole.
        lowered: what the runtime made of it.
        batches: inputs of the graph, each a tensor for each input.

    Raises:
        InputError, RuntimeUnavailable, RuntimeError: the runtime cannot run on inputs that the
            oracle runs on.
    """
    device = _device_of(batches)
    oracle = lowered.oracle or run_of(graph, device)
    with torch.inference_mode():
        pairs = [(batch, _results(oracle, batch)) for batch in batches]
        known = [(batch, want) for batch, want in pairs if want is not None]
        if not known:
            return None
        made = [_runs(lowered, batch, first=index == 0) for index, (batch, _) in enumerate(known)]
        ran = [index for index, results in enumerate(made) if results is not None]
        batches, wanted = [known[index][0] for index in ran], [known[index][1] for index in ran]
        errors = output_errors(wanted, [made[index] or () for index in ran])
        bounds = _bounds(graph, lowered, batches, wanted, errors)
    samples = sum(map(size_of, batches))
    if bounds is None:
        nearest = min((error.db for error in errors), default=math.inf)
        return Agreement(nearest, None, samples, agrees=True)
    within = [error.within(bound) for error, bound in zip(errors, bounds, strict=True)]
    worst = min(range(len(errors)), key=lambda index: (within[index], errors[index].db))
    return Agreement(errors[worst].db, bounds[worst].db, samples, all(within))


def _results(oracle: Callable[..., Any], batch: Batch) -> tuple[Any, ...] | None:
    """What the oracle makes of a batch; ``None`` where it cannot run on it."""
    try:
        results: tuple[Any, ...] = oracle(*batch)
    except (RuntimeError, IndexError, ValueError):
        return None
    return results


def _runs(lowered: Lowered, batch: Batch, first: bool) -> tuple[Any, ...] | None:
    """What the runtime makes of a batch; ``None`` for a size that it refuses, but for the first.

    Raises:
        InputError, RuntimeUnavailable, RuntimeError: it refuses the first.
    """
    try:
        return lowered.run(*batch)
    except (InputError, RuntimeUnavailable, RuntimeError):
        if first:
            raise
        return None


def _bounds(
    graph: Graph,
    lowered: Lowered,
    batches: Sequence[Batch],
    wanted: Sequence[Sequence[Any]],
    errors: Sequence[OutputError],
) -> list[OutputError] | None:
    """For each output how far it may be off; ``None`` where all are so near that it is plain."""
    if all(error.db >= NEAR_DB for error in errors):
        return None
    draws: list[list[OutputError]] = []
    bounds: list[OutputError] = []
    for seed in range(_DRAWS):
        halves = seed >= _QUICK_DRAWS
        other = perturbed(graph, lowered, _device_of(batches), seed, halves=halves)
        draws.append(output_errors(wanted, [other(*batch) for batch in batches]))
        bounds = [_largest(several) for several in zip(*draws, strict=True)]
        if all(error.within(bound) for error, bound in zip(errors, bounds, strict=True)):
            break
    return bounds


def farthest_layer(
    graph: Graph, lower: Callable[[Graph], Lowered], batch: Batch
) -> tuple[str, float]:
    """The layer that is farthest from the oracle if given the oracle's values, and how far in dB.

    Args:
        graph: the quantized graph, whole.
        lower: to the runtime in question.
        batch: inputs of the graph.
    """
    with torch.inference_mode():
        cuts = Cuts.of(graph, batch)
        lowered = lower(cuts.graph)
        cuts = cuts.expecting(lowered.oracle)
        results = lowered.run(*cuts.inputs, *cuts.given)
    pairs = zip(cuts.outputs, results, cuts.zero_points, strict=True)
    errors = [
        _error_of(want.float() - (z or 0), have.float() - (z or 0)) for want, have, z in pairs
    ]
    distances = zip(cuts.layers, (error.db for error in errors), strict=True)
    return min(distances, key=lambda pair: pair[1])


@dataclass(frozen=True)
class OutputError:
    """Of one output: its signal and noise; or if it decides, how many results, and other ones."""

    signal: float
    noise: float
    decides: bool

    @property
    def db(self) -> float:
        return sqnr_db(self.signal, self.noise)

    def within(self, bound: OutputError) -> bool:
        allowed = _OTHER_DECISIONS * self.signal if self.decides else 0.0
        return self.noise <= max(allowed, bound.noise)


def _largest(errors: Sequence[OutputError]) -> OutputError:
    noise = _MARGIN * max(error.noise for error in errors)
    return OutputError(errors[0].signal, noise, errors[0].decides)


def output_errors(
    wanted: Sequence[Sequence[Any]], results: Sequence[Sequence[Any]]
) -> list[OutputError]:
    """For each output that is a tensor, over all batches."""
    errors = []
    for wants, haves in zip(zip(*wanted, strict=True), zip(*results, strict=True), strict=True):
        if isinstance(wants[0], Tensor):
            parts = [_error_of(want, have) for want, have in zip(wants, haves, strict=True)]
            signal, noise = sum(p.signal for p in parts), sum(p.noise for p in parts)
            errors.append(OutputError(signal, noise, parts[0].decides))
    return errors


def _error_of(want: Tensor, have: Any) -> OutputError:
    decides = not want.is_floating_point() and not want.is_complex()
    if not isinstance(have, Tensor) or have.shape != want.shape:
        return OutputError(1.0, math.inf, decides)
    if decides:
        return OutputError(float(want.numel()), float((want != have).sum()), decides)
    exact, real = _real(want), _real(have)
    same = (exact == real) | (exact.isnan() & real.isnan())  # infinities too
    noise = float(torch.where(same, 0.0, exact - real).square().sum())
    signal = float(torch.where(exact.isfinite(), exact, 0.0).square().sum())
    return OutputError(signal, math.inf if math.isnan(noise) else noise, decides)


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def _device_of(batches: Sequence[Batch]) -> torch.device:
    return next((t.device for batch in batches for t in batch), torch.device("cpu"))
