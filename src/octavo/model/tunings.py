"""What tuning found for a model, by kind of CPU: in a file, and when it is loaded.

Tested in tests/model/test_tunings.py.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import BATCHES, COUNT, NAMES, NUMBER, optional
from octavo.errors import ArtifactError, InputError, OctavoWarning
from octavo.graph.batches import Signature, split_batch
from octavo.graph.calls import flatten_call
from octavo.graph.graph import Graph, TensorMeta
from octavo.graph.soundness.soundness import check
from octavo.runtimes import Lowered, Options, cpu
from octavo.runtimes.tuning import Tuning, Variant, tune

Tunings = Mapping[str, Tuning]

BUDGET_S = 60.0
MOST_BATCHES = 8  # of a user's data on which variants are held to the bound


def to_json(tunings: Tunings) -> str:
    """As text, for a file."""
    return json.dumps([tuning.to_dict() for tuning in tunings.values()])


def from_json(text: str, graph: Graph) -> dict[str, Tuning]:
    """What `to_json` wrote, out of a file from anyone.

    Raises:
        ArtifactError: it is not that, or is of another graph.
    """
    try:
        found = [Tuning.from_dict(item) for item in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"its tunings are malformed: {error}") from None
    for tuning in found:
        for variant in (tuning.best, tuning.untuned):  # what goes on with a tuning runs both
            _check_sizes(variant, graph)
    return {tuning.kind: tuning for tuning in found}


def _check_sizes(variant: Variant, graph: Graph) -> None:
    """Refuse sizes that the graph does not take, or that ask for more than a file may."""
    if variant.sizes is None:
        return
    shapes = dict(zip(graph.input_names(), variant.sizes, strict=False))
    fitting = len(shapes) == len(variant.sizes) == len(graph.inputs) and all(
        TensorMeta(shapes[entry.name], entry.meta.dtype).fits(entry.meta) for entry in graph.inputs
    )
    if not fitting or graph.broken_guard(shapes) is not None:
        raise ArtifactError(f"its model was tuned for {variant.sizes}, which it does not take")
    inputs = (replace(entry, example=shapes[entry.name]) for entry in graph.inputs)
    check(replace(graph, inputs=tuple(inputs)))


def here(tunings: Tunings) -> Tuning | None:
    """What was found on this kind of CPU; ``None``, with a warning, if only on others."""
    found = tunings.get(cpu.kind())
    if found is None and tunings:
        warnings.warn(
            f"the model was tuned for {'; '.join(tunings)}; this is another CPU, {cpu.kind()}, "
            'where it runs untuned: octavo tune FILE, or lower("fastest", tune=True), tunes it '
            "for this one too",
            OctavoWarning,
            stacklevel=4,
        )
    return found


def warn_unusable(tuning: Tuning, why: Exception) -> None:
    """Say that a model runs untuned, since it cannot run as it was tuned."""
    warnings.warn(
        f"the model runs untuned: as it was tuned for this CPU ({tuning.best}) it cannot run here: "
        f"{why}. Tune it again: octavo tune FILE",
        OctavoWarning,
        stacklevel=4,
    )


def with_words(lowered: Lowered, tuning: Tuning) -> Lowered:
    """With what tuning brought, and why layers do not run in int8."""
    note = "; ".join(filter(None, [tuning.headline, lowered.note]))
    return replace(lowered, note=note, fallbacks={**lowered.fallbacks, **tuning.slowed})


def trials(
    graph: Graph,
    signature: Signature,
    known: Tunings,
    device: torch.device,
    options: Options,
    samples: Sequence[Sequence[Tensor]],
    *,
    budget: float | None,
    runtimes: Sequence[str] | None,
    batch: int | None,
    data: Iterable[Any] | None,
) -> Iterator[Tuning]:
    """`octavo.runtimes.tuning.tune` for a user's model: it goes on where it was stopped.

    Args:
        graph, signature: of the model.
        known: what was found for it so far.
        device: where it is.
        options, samples, budget, runtimes, batch: as there.
        data: batches of the user's.

    Raises:
        OctavoError: as there; or an argument is of another kind, or does not fit the model.
    """
    optional(NUMBER, budget=budget)
    optional(NAMES, runtimes=runtimes)
    optional(COUNT, batch=batch)
    optional(BATCHES, data=data)
    begun = known.get(cpu.kind())
    return tune(
        graph,
        device,
        options,
        samples,
        budget=budget,
        runtimes=runtimes,
        batch=batch,
        data=None if data is None else _calls(data, graph, signature),
        begun=None if begun is None or begun.finished else begun,
    )


def _calls(data: Iterable[Any], graph: Graph, signature: Signature) -> list[tuple[Tensor, ...]]:
    """The first batches of a user's data, as the graph takes them.

    Raises:
        InputError: a batch does not fit the model, or there is none.
    """
    batches = (split_batch(batch, signature) for batch in itertools.islice(data, MOST_BATCHES))
    found = [tuple(flatten_call(graph, batch.args, batch.kwargs)) for batch in batches]
    if not found:
        raise InputError("data has no batches: give some of what the model is used for")
    return found
