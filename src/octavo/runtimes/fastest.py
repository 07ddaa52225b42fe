"""The ``fastest`` runtime: of those installed that agree with the oracle, the quickest here.

They are timed on random inputs of the sizes that the model was captured with, or of the batch that
is asked for. What was found stands in `Lowered.note`.

Tested in tests/runtimes/test_agreement.py and tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.errors import OctavoError, RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.lowering import lower_proved
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import RUNTIMES
from octavo.runtimes.timing import REST_S, interleave

SECONDS = 3.0  # of timing, for all candidates together


def lower_to_fastest(
    graph: Graph, device: torch.device, options: Options, samples: Sequence[Sequence[Tensor]]
) -> Lowered:
    """Lower to every runtime that can run the model here, and keep the fastest that agrees.

    Raises:
        RuntimeUnavailable: none can.
    """
    lowered: dict[str, Lowered] = {}
    refused: dict[str, str] = {}
    for name in RUNTIMES:
        try:
            if RUNTIMES[name].candidate:
                own = options.only(*RUNTIMES[name].options, "precision")
                lowered[name] = lower_proved(graph, name, device, own, samples)
        except OctavoError as error:
            refused[name] = str(error)
    if not lowered:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise RuntimeUnavailable(f"no runtime can run this model here: {reasons}")
    times = _times(lowered, random_inputs(graph, options.batch))
    ranked = sorted(times, key=times.__getitem__)
    note = "; ".join([_ranking(ranked, times), *(f"not {n}: {why}" for n, why in refused.items())])
    return replace(lowered[ranked[0]], note=note)


def _times(lowered: dict[str, Lowered], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Median milliseconds of a call."""

    def call(run: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: run(*inputs)

    with torch.inference_mode():
        latencies = interleave(
            {name: call(runtime.run) for name, runtime in lowered.items()},
            budget_s=SECONDS,
            rest_s=REST_S if len(lowered) > 1 else 0.0,
        )
    return {name: 1e3 * latency.median_s for name, latency in latencies.items()}


def _ranking(ranked: list[str], times: dict[str, float]) -> str:
    """``"openvino is the fastest here: 3.10 ms; torch 5.60 ms (1.81x)"``."""
    best = ranked[0]
    others = [
        f"{name} {times[name]:.2f} ms ({times[name] / times[best]:.2f}x)" for name in ranked[1:]
    ]
    return "; ".join([f"{best} is the fastest here: {times[best]:.2f} ms", *others])
