"""The ``fastest`` runtime: the one of the installed runtimes that is fastest on this machine.

They are timed on random inputs of the sizes that the model was captured with, or of the batch that
is asked for. What was found stands in `Lowered.note`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from octavo.errors import OctavoError, RuntimeUnavailable
from octavo.graph import Graph
from octavo.latency import REST_S, interleave
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Lowered, Options

# Each with the options that it has.
CANDIDATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("octavo.runtimes.torch_int8", ()),
    "onnxruntime": ("octavo.runtimes.onnxruntime", ("threads", "batch")),
    "openvino": ("octavo.runtimes.openvino", ("threads", "batch", "cache")),
}

SECONDS = 3.0  # of timing, for all candidates together


def lower(graph: Graph, device: torch.device, options: Options) -> Lowered:
    """Lower to every runtime that can run the model here, and keep the fastest.

    Raises:
        RuntimeUnavailable: none can.
    """
    lowered: dict[str, Lowered] = {}
    refused: dict[str, str] = {}
    for name, (module, known) in CANDIDATES.items():
        own = Options(**{option: getattr(options, option) for option in known})
        try:
            lowered[name] = import_module(module).lower(graph, device, own)
        except OctavoError as error:
            refused[name] = str(error)
    if not lowered:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise RuntimeUnavailable(f"no runtime can run this model here: {reasons}")
    times = _times(lowered, random_inputs(graph, options.batch))
    ranked = sorted(times, key=times.__getitem__)
    best = lowered[ranked[0]]
    return Lowered(best.runtime, best.run, best.kernels, best.fallbacks, _note(ranked, times))


def _times(lowered: dict[str, Lowered], inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Median milliseconds of a call."""

    def call(run: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: run(*inputs)

    with torch.inference_mode():
        found = interleave(
            {name: call(made.run) for name, made in lowered.items()},
            budget_s=SECONDS,
            rest_s=REST_S if len(lowered) > 1 else 0.0,
        )
    return {name: 1e3 * latency.median_s for name, latency in found.items()}


def _note(ranked: list[str], times: dict[str, float]) -> str:
    """``"openvino is the fastest here: 3.10 ms; torch 5.60 ms (1.81x)"``."""
    best = ranked[0]
    others = [
        f"{name} {times[name]:.2f} ms ({times[name] / times[best]:.2f}x)" for name in ranked[1:]
    ]
    return "; ".join([f"{best} is the fastest here: {times[best]:.2f} ms", *others])
