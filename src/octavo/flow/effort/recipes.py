"""What is done for each effort, as a table: steps in their order.

Tested in tests/flow/effort/test_refining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from octavo.arguments import Kind
from octavo.flow.effort.draft import Draft, Samples
from octavo.numerics.observers import MSE, Entropy, FixedRange, Histogram, Observer
from octavo.quantization.plan import Plan, TensorPlan
from octavo.quantization.weights import GPTQ, BiasCorrection, WeightMethod


@dataclass(frozen=True)
class Step:
    """One method.

    Attributes:
        name: in tables.
        change: the draft that it makes of another, given the samples.
    """

    name: str
    change: Callable[[Draft, Samples], Draft]


def observed_by(observer: Observer) -> Step:
    """Ranges of activations from another observer."""
    return Step(
        f"observer {observer.name}",
        lambda draft, samples: draft.changed(samples, plan=observing(draft.plan, observer)),
    )


def rounded_by(method: WeightMethod) -> Step:
    """Weights rounded by a method, where the user's own have set scales and no bias yet."""
    return Step(
        f"weights {method.name}",
        lambda draft, samples: draft.changed(samples, weights=rounding(draft.weights, method)),
    )


def rounding(weights: Sequence[WeightMethod], method: WeightMethod) -> tuple[WeightMethod, ...]:
    """The methods with another one behind those that round, before the correction of biases."""
    last = tuple(one for one in weights if isinstance(one, BiasCorrection))
    return (*(one for one in weights if one not in last), method, *last)


def observing(plan: Plan, observer: Observer) -> Plan:
    """The plan with another observer for all activations but those whose range is fixed."""

    def changed(tensor: TensorPlan) -> TensorPlan:
        spec = tensor.spec
        if spec is None or tensor.kind == "weight" or isinstance(spec.observer, FixedRange):
            return tensor
        return replace(tensor, spec=replace(spec, observer=observer))

    return replace(plan, tensors={name: changed(t) for name, t in plan.tensors.items()})


# Of wider layers what it measures takes more than 256 MB each.
_ROUNDED = rounded_by(GPTQ(most_inputs=8192))

# effort -> its steps
RECIPES: Mapping[str, tuple[Step, ...]] = {
    "fast": (),
    "balanced": (observed_by(Histogram()), _ROUNDED),
    "best": (
        observed_by(Histogram()),
        observed_by(MSE()),
        observed_by(Entropy()),
        _ROUNDED,
    ),
}
EFFORT = Kind(lambda value: value in RECIPES, f"give one of {', '.join(map(repr, RECIPES))}")
