"""The metric and the latency of a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from octavo.errors import InputError, OctavoError
from octavo.graph.batches import Batch, Signature, split_batch
from octavo.graph.evaluation import evaluating
from octavo.measuring.metrics import Metric, metric_factory
from octavo.measuring.next_tokens import judged
from octavo.runtimes.timing import interleave

LATENCY_S = 2.0  # of interleaved rounds for each trial


class Judge:
    """The metric of a model on data."""

    def __init__(
        self,
        data: Iterable[Any],
        metric: str | Metric | None,
        signature: Signature,
        inputs: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.signature, self.inputs = data, signature, inputs
        self.make, self.metric = metric_factory(metric), metric

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        metric = self.make()
        for batch in self.data:
            call = split_batch(batch, self.signature, self.inputs)
            call = judged(call, self.signature, self.metric)
            metric.update(call.run(model), call.labels)
        value = metric.value()
        if value is None:
            raise InputError(
                f"the metric {metric.name} cannot be measured: "
                f"{metric.problem or 'there is no data'}"
            )
        return value


def value_of(judge: Callable[[nn.Module], float], model: nn.Module) -> float:
    """What the metric says.

    Raises:
        InputError: it raises, or gives no finite number.
    """
    name = getattr(judge, "__name__", "metric")
    try:
        with torch.no_grad():
            value = float(judge(model))
    except OctavoError:
        raise
    except Exception as error:
        raise InputError(f"{name} raised {type(error).__name__}: {error}") from error
    if value != value or abs(value) == float("inf"):
        raise InputError(f"{name} returned {value}")
    return value


def checked(judge: Callable[[nn.Module], float], model: nn.Module) -> float:
    """The float model's metric, which has to be the same each time."""
    values = [value_of(judge, model) for _ in range(2)]
    if values[0] != values[1]:
        name = getattr(judge, "__name__", "metric")
        raise InputError(
            f"{name} gives {values[0]} and then {values[1]} for the same model: fix its seed, or "
            "the order and augmentation of its data"
        )
    return values[0]


class Stopwatch:
    """Latency beside the float model's, on one batch."""

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self.model, self.example = model, example.apart()

    def over_fp32(self, other: nn.Module) -> float:
        """The median ratio of interleaved rounds."""
        with evaluating(self.model), torch.no_grad():
            times = interleave(
                {
                    "fp32": lambda: self.example.run_as_it_is(self.model),
                    "other": lambda: self.example.run_as_it_is(other),
                },
                budget_s=LATENCY_S,
                progress=False,
            )
        return 1 / times["other"].speedup_over(times["fp32"])

    def bf16(self) -> float | None:
        """That of the model under autocast to bf16; ``None`` where it cannot run so."""

        class Half(nn.Module):
            def forward(half, *args: Any, **kwargs: Any) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return self.model(*args, **kwargs)

        try:
            with evaluating(self.model), torch.no_grad():
                self.example.run_as_it_is(Half())
            return self.over_fp32(Half())
        except RuntimeError:
            return None
