"""How far a variant's results may be from those in float: no farther than the plan's are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.quantization.float_graph import with_floats
from octavo.runtimes.agreement import NEAR_DB, OutputError, output_errors

# Errors of roundings partly cancel, so that one fewer may well be some more noise.
LESS_DB = 1.0


@dataclass(frozen=True)
class Bound:
    """What a variant may lose.

    Attributes:
        batches: inputs of the graph.
        exact: the results of its float graph on each.
        allowed: for each output the error that it may have.
        less_db: how much more than the plan's that is.
    """

    batches: tuple[Sequence[Tensor], ...]
    exact: tuple[tuple[Any, ...], ...]
    allowed: tuple[OutputError, ...]
    less_db: float

    @classmethod
    def of(
        cls, graph: Graph, batches: Sequence[Sequence[Tensor]], less_db: float = LESS_DB
    ) -> Bound:
        """The bound that a quantized graph gives: its own error, and a little more.

        Args:
            graph: as planned.
            batches: inputs for it; those that it cannot run on are left out.
            less_db: by how much a variant may be less precise.
        """
        in_float = with_floats(graph, [node.name for node in graph.nodes])
        exact, planned, ran = [], [], []
        with torch.inference_mode():
            for batch in batches:
                try:
                    pair = (run_of(in_float)(*batch), run_of(graph)(*batch))
                except (RuntimeError, IndexError, ValueError):
                    continue
                exact.append(pair[0])
                planned.append(pair[1])
                ran.append(batch)
        errors = output_errors(exact, planned) if ran else []
        most = 10 ** (less_db / 10)
        allowed = (
            replace(error, noise=max(most * error.noise, error.signal * 10 ** (-NEAR_DB / 10)))
            for error in errors
        )
        return cls(tuple(ran), tuple(exact), tuple(allowed), less_db)

    def broken_by(self, run: Callable[..., Any]) -> str:
        """Why a variant is not precise enough, in words; ``""`` if it is."""
        try:
            with torch.inference_mode():
                results = [run(*batch) for batch in self.batches]
        except (InputError, RuntimeUnavailable, RuntimeError) as reason:
            return f"it cannot run on inputs that the oracle runs on: {reason}"
        if not results:
            return ""
        errors = output_errors(self.exact, results)
        pairs = list(zip(errors, self.allowed, strict=True))
        too_far = [(error, most) for error, most in pairs if not error.within(most)]
        if not too_far:
            return ""
        error, most = too_far[0]
        return (
            f"its results are {_distance(error)} from those in float, where the plan's are "
            f"{_distance(replace(most, noise=most.noise / 10 ** (self.less_db / 10)))}"
        )


def _distance(error: OutputError) -> str:
    if error.decides:
        return f"{error.noise:.0f} of {error.signal:.0f} decisions"
    return "nothing" if error.db == math.inf else f"{error.db:.1f} dB"
