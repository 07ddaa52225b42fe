"""What is done for each effort, as a table of recipes: steps in order, for plans that they suit.

Tested in tests/flow/effort/test_refining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from octavo.arguments import TEXT, expect
from octavo.errors import InputError, PlanError
from octavo.flow.effort.draft import Draft, Samples
from octavo.flow.effort.islands import (
    additions,
    ends,
    floats_cost_little,
    with_floats,
)
from octavo.graph.graph import Graph
from octavo.numerics.observers import MSE, Entropy, FixedRange, Histogram, Observer
from octavo.qat.reconstruction import Reconstruction
from octavo.quantization.plan import Plan, TensorPlan
from octavo.quantization.weights import GPTQ, AdaRound, BiasCorrection, Clip, WeightMethod

Suits = Callable[[Plan], bool]


def finds_ranges(plan: Plan) -> bool:
    """Whether ranges of activations are found on data."""
    return plan.needs_calibration


def has_few_bits(plan: Plan) -> bool:
    """Whether a weight has fewer than eight bits: nearly all of the noise is that of such."""
    specs = [tensor.spec for tensor in plan.quantized.values() if tensor.kind == "weight"]
    return any(spec is not None and spec.scheme.integers.bits < 8 for spec in specs)


def has_eight_bits(plan: Plan) -> bool:
    """Whether none of the weights has fewer."""
    return not has_few_bits(plan)


@dataclass(frozen=True)
class Step:
    """One method.

    Attributes:
        name: in tables.
        change: the draft that it makes of another, given the samples.
        methods: whose statistics it needs.
        suits: for which plans it is tried.
    """

    name: str
    change: Callable[[Draft, Samples], Draft]
    methods: tuple[WeightMethod, ...] = ()
    suits: Suits = lambda plan: True


def observed_by(observer: Observer, margin: float = 1.0) -> Step:
    """Ranges of activations from another observer, and so many times as wide."""
    wider = "" if margin == 1.0 else f", ranges x {margin}"
    return Step(
        f"observer {observer.name}{wider}",
        lambda draft, samples: draft.changed(
            samples, plan=observing(draft.plan, observer), margin=margin
        ),
        suits=finds_ranges,
    )


def rounded_by(method: WeightMethod, suits: Suits = has_eight_bits) -> Step:
    """Weights rounded by a method, where the user's own have set scales and no bias yet."""
    return Step(
        f"weights {method.name}",
        lambda draft, samples: draft.changed(samples, weights=rounding(draft.weights, method)),
        (method,),
        suits,
    )


def floating(name: str, found: Callable[[Graph, Plan], Sequence[str]]) -> Step:
    """What is found in a graph stays float, where the target's kernels have floats beside them."""

    def change(draft: Draft, samples: Samples) -> Draft:
        names = found(draft.graph, draft.plan)
        if draft.planner is None or not names:
            raise PlanError("nothing to leave in float")
        return draft.changed(samples, plan=with_floats(draft.plan, draft.planner, names))

    return Step(f"{name} in float", change, suits=floats_cost_little)


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


# A few hundred samples show deep layers little more than they have inputs: with less damping their
# errors are taken back for these samples alone. Of wider layers what it measures takes more than
# 256 MB each.
_ROUNDED = rounded_by(GPTQ(damping=0.5, most_inputs=8192))

# Small layers make all of the steps, and large ones as many as two seconds hold.
_LEARNED = rounded_by(AdaRound(steps=300, seconds=2.0, most_inputs=2400))

_FLOATS = (
    floating("additions", additions),
    floating("ends", ends),
)

# Few bits ask for scales of their own first, and errors are so large that all of them are worth
# taking back.
_CLIPPED = rounded_by(Clip(), has_few_bits)
_FEW_ROUNDED = rounded_by(GPTQ(damping=0.1, most_inputs=8192), has_few_bits)
_FEW_LEARNED = rounded_by(AdaRound(seconds=2.0, most_inputs=2400), has_few_bits)


@dataclass(frozen=True)
class Recipe:
    """What an effort does.

    Attributes:
        steps: in their order.
        blocks: what learns block by block behind the steps where weights have few bits, which
            leave it something: small models make all of its steps, and large ones as many as a
            minute and a half holds.
    """

    steps: tuple[Step, ...] = ()
    blocks: tuple[Reconstruction, ...] = ()


RECIPES: Mapping[str, Recipe] = {
    "fast": Recipe(),
    "balanced": Recipe(
        (
            _CLIPPED,
            _FEW_ROUNDED,
            observed_by(Histogram(), 1.1),
            observed_by(Histogram()),
            *_FLOATS,
            _ROUNDED,
        )
    ),
    "best": Recipe(
        (
            _CLIPPED,
            _FEW_ROUNDED,
            _FEW_LEARNED,
            observed_by(Histogram(), 1.1),
            observed_by(Histogram(), 1.2),
            observed_by(Histogram()),
            observed_by(MSE(), 1.1),
            observed_by(Entropy()),
            *_FLOATS,
            _ROUNDED,
            _LEARNED,
        ),
        blocks=(Reconstruction(seconds=90.0),),
    ),
}


def steps_of(effort: str, plan: Plan) -> tuple[Step, ...]:
    """The steps of an effort for a model of this plan."""
    return tuple(step for step in RECIPES[effort].steps if step.suits(plan))


def learning_of(effort: str, plan: Plan) -> tuple[Reconstruction, ...]:
    """What is learned block by block behind the steps, see `octavo.Reconstruction`."""
    return RECIPES[effort].blocks if has_few_bits(plan) else ()


def check_effort(effort: str) -> None:
    """Refuse another word.

    Raises:
        InputError: it is none of `RECIPES`.
    """
    expect(TEXT, effort=effort)
    if effort not in RECIPES:
        raise InputError(f"effort is {effort!r}; give one of {', '.join(map(repr, RECIPES))}")
