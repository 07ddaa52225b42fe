"""Tuning a graph: one choice after the other, each from the fastest variant so far.

A variant is kept if it is faster by more than the noise, in two measurements, agrees with the
oracle of what it runs, and is as near to the float model as the plan is. Of runtimes none is there
before the others: the one that was faster in two measurements is taken, however noisy they were. In
the end the fastest is timed beside the untuned and beside float once more. It gives way to the
untuned, which is simpler, where that is faster at all, and to float by the rule for variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import Tensor

from octavo.errors import InputError, OctavoError, RuntimeUnavailable, first_line
from octavo.graph.graph import Graph
from octavo.runtimes import cpu
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.options import Options
from octavo.runtimes.runtime import ORACLE, RUNTIMES, check_device, runtime_of
from octavo.runtimes.tuning.bound import Bound
from octavo.runtimes.tuning.choices import RUNTIME, Choice, Space, choices, variants
from octavo.runtimes.tuning.gain import Gain, Measure, side_by_side
from octavo.runtimes.tuning.layers import all_layers
from octavo.runtimes.tuning.record import NOISE, Trial, Tuning
from octavo.runtimes.tuning.variant import Ready, Variant, prepare

_OF_COMPILERS = (OctavoError, RuntimeError, ValueError, TypeError, LookupError)
_FOR_TRIALS = 0.85  # of the time; the rest is for the last comparison


def candidates() -> tuple[str, ...]:
    """The runtimes that are tried unless others are named."""
    names = []
    for name in RUNTIMES:
        try:
            if RUNTIMES[name].candidate:
                names.append(name)
        except OctavoError:  # its package is missing
            continue
    return tuple(names)


def tune(
    graph: Graph,
    device: torch.device,
    options: Options,
    samples: Sequence[Sequence[Tensor]],
    *,
    budget: float | None,
    runtimes: Sequence[str] | None = None,
    batch: int | None = None,
    data: Sequence[Sequence[Tensor]] | None = None,
    begun: Tuning | None = None,
    measure: Measure = side_by_side,
    clock: Callable[[], float] = monotonic,
) -> Iterator[Tuning]:
    """Try variants, and say after each choice what is known so far; the last one is finished.

    Whoever stops listening can go on later: what was tried is not tried again.

    Args:
        graph: in canonical QDQ form.
        device: where its tensors are: the CPU.
        options: what was asked for, which all variants keep.
        samples: batches of inputs on which variants prove themselves; without any, those that are
            timed.
        budget: seconds; ``None`` is as many as it takes until nothing is left to try. A trial that
            has begun comes to its end, and the runtimes are compared in any case.
        runtimes: those that are tried; ``None`` is all that ``"fastest"`` tries.
        batch: the size of the batch that is timed; ``None`` is the example's.
        data: batches of inputs on which variants have to be as near to the float model as the plan
            is; ``None`` is the samples, and what is timed.
        begun: a tuning of this graph that was not finished.
        measure: what variants gain over another; `side_by_side`.
        clock: in seconds.

    Raises:
        InputError: the budget is none, or the model does not take the batch.
        RuntimeUnavailable: a runtime is not known, or none can run the graph here.
    """
    if budget is not None and not budget > 0:
        raise InputError(
            f"budget={budget}: give seconds, more than 0; 60 is enough for most models"
        )
    names = candidates() if runtimes is None else tuple(runtimes)
    for name in names:
        runtime_of(name)
        check_device(name, device)
    if not names or ORACLE in names:
        raise InputError(
            f"runtimes is {list(names)}: name one at least, and not {ORACLE!r}, which the others "
            "are compared with"
        )
    inputs = random_inputs(graph, batch if options.batch is None else options.batch)
    space = _space(graph, names, options, inputs)
    if begun is not None and not {begun.best.runtime, begun.untuned.runtime} <= set(names):
        begun = None  # it was about other runtimes
    began = clock()
    bound = Bound.of(graph, [*samples, inputs] if data is None else data)
    search = _Search(space, device, options, samples or [inputs], inputs, bound, measure)
    return search.run(begun, _Time(began, budget, clock))


def _space(
    graph: Graph, names: tuple[str, ...], options: Options, inputs: tuple[Tensor, ...]
) -> Space:
    is_open = any(size is None for entry in graph.inputs for size in entry.meta.shape)
    return Space(
        graph,
        names,
        tuple(tuple(tensor.shape) for tensor in inputs) if is_open else None,
        options.threads or torch.get_num_threads(),
        options.threads is not None,
        options.precision is None and cpu.has_bf16(),
    )


@dataclass(frozen=True)
class _Time:
    began: float
    budget: float | None
    clock: Callable[[], float]

    @property
    def spent(self) -> float:
        return self.clock() - self.began

    @property
    def is_up(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.budget is not None and self.spent >= _FOR_TRIALS * self.budget


class _Search:
    """The state of a tuning.

    Attributes:
        best: the fastest variant so far.
        untuned: the fastest that is plain.
        trials: what was tried.
        ready: variants that are lowered: the best one, between choices.
    """

    def __init__(
        self,
        space: Space,
        device: torch.device,
        options: Options,
        samples: Sequence[Sequence[Tensor]],
        inputs: tuple[Tensor, ...],
        bound: Bound,
        measure: Measure,
    ) -> None:
        self.space, self.device, self.options = space, device, options
        self.samples, self.inputs, self.bound, self.measure = samples, inputs, bound, measure
        self.choices = choices(space)
        self.ready: dict[Variant, Ready] = {}
        self.trials: list[Trial] = []

    def run(self, begun: Tuning | None, time: _Time) -> Iterator[Tuning]:
        """What is known after each choice."""
        self._start(begun)
        before = 0.0 if begun is None else begun.seconds

        def so_far() -> Tuning:
            spent = before + time.spent
            return Tuning(cpu.kind(), self.best, self.untuned, tuple(self.trials), seconds=spent)

        if begun is None and self._try(RUNTIME):  # however little time there is
            yield so_far()
        tried = -1
        while tried < len(self.trials):
            tried = len(self.trials)
            for choice in self.choices:
                if time.is_up:
                    break
                if self._try(choice):
                    yield so_far()
        over_untuned, over_float = self._settle()
        yield replace(so_far(), over_untuned=over_untuned, over_float=over_float, finished=True)

    def _start(self, begun: Tuning | None) -> None:
        """From what is known, or from the first runtime that can run the graph."""
        if begun is not None:
            self.best, self.untuned = begun.best, begun.untuned
            self.trials = list(begun.trials)
            self._ready_for(self.best).proved(self.samples)
            return
        reasons = []
        for name in self.space.runtimes:
            self.best = self.untuned = Variant(name)
            try:
                self._ready_for(self.best).proved(self.samples)
            except OctavoError as error:
                reasons.append(f"{name}: {error}")
                continue
            self.trials.append(Trial(RUNTIME.name, name, self.best.key, 1.0, kept=True))
            return
        raise RuntimeUnavailable(f"no runtime can run this model here: {'; '.join(reasons)}")

    def _try(self, choice: Choice) -> bool:
        """Measure what a choice may come to beside the best; whether there was anything."""
        known = {trial.key for trial in self.trials} | {self.untuned.key, self.best.key}
        values = {
            variant: called
            for variant, called in variants(choice, self.space, self.best).items()
            if variant.key not in known
        }
        contenders = []
        for variant, called in values.items():
            why = self._obstacle(variant)
            if why:
                self.trials.append(Trial(choice.name, called, variant.key, why=why))
            else:
                contenders.append(variant)
        if contenders:
            before, gains = self.best, self._gains(contenders)
            ranked = sorted(contenders, key=lambda variant: -gains[variant].speed)
            self._note_untuned(ranked, gains)
            for variant in ranked:
                trial = Trial(choice.name, values[variant], variant.key)
                self.trials.append(self._judged(variant, gains[variant], before, trial))
            self.ready = {self.best: self.ready[self.best]}
        return bool(values)

    def _obstacle(self, variant: Variant) -> str:
        """Why a variant cannot run; ``""`` if it can."""
        try:
            with torch.inference_mode():
                self._ready_for(variant).lowered.run(*self.inputs)
        except _OF_COMPILERS as error:  # which shall not end the others' trials
            return first_line(error)
        return ""

    def _note_untuned(self, ranked: Sequence[Variant], gains: Mapping[Variant, Gain]) -> None:
        """The fastest plain variant is what there would be without tuning."""
        faster = (variant for variant in ranked if variant.plain and gains[variant].speed > 1)
        self.untuned = next((v for v in faster if not self._fault(v)), self.untuned)

    def _judged(self, variant: Variant, gain: Gain, before: Variant, trial: Trial) -> Trial:
        """The trial with its outcome; what is kept is the best from now on."""
        measured = replace(trial, speed=gain.speed, noise=gain.noise)
        why = f"{self.best} is faster" if self.best != before else self._refusal(variant, gain)
        if not why:
            self.best = variant
        moved = _moved(before, variant) if not why else _moved(variant, before)
        return replace(measured, kept=not why, why=why, layers=moved)

    def _refusal(self, variant: Variant, gain: Gain) -> str:
        """Why a variant is not the best one from now on; ``""`` if it is."""
        even = variant.plain and self.best.plain  # neither is there before the other
        if not (gain.speed > 1 if even else gain.real):
            return "slower" if even or gain.speed < 1 else NOISE
        again = self._gains([variant])[variant]
        if not (gain.speed * again.speed > 1 if even else again.real):
            return f"{'slower' if even else NOISE}, measured again"
        return self._fault(variant)

    def _fault(self, variant: Variant) -> str:
        """What is wrong with a variant's results; ``""`` for nothing."""
        try:
            return self.bound.broken_by(self._ready_for(variant).proved(self.samples).run)
        except OctavoError as error:
            return first_line(error)

    def _settle(self) -> tuple[float | None, float | None]:
        """Give way to the untuned, or to all in float; how many times as fast as these the best is.

        Float was not asked for, so that it has to be faster by more than the noise, and twice.
        """
        layers = all_layers(self.space.graph).layers
        in_float = replace(self.best, in_float=layers, in_bfloat16=frozenset())
        rivals = [self.untuned, in_float]
        able = [variant for variant in dict.fromkeys(rivals) if not self._obstacle(variant)]
        gains = self._beside_untuned(able)
        if in_float in able and gains[in_float].real:
            gains = self._beside_untuned(able)
            ahead = gains[in_float].speed > gains[self.best].speed
            if ahead and gains[in_float].real and not self._fault(in_float):
                self.best = in_float
        over = [
            gains[self.best].speed / gains[variant].speed if variant in able else None
            for variant in rivals
        ]
        return over[0], over[1]

    def _beside_untuned(self, rivals: Sequence[Variant]) -> Mapping[Variant, Gain]:
        """What all of them gain over the best, which gives way to the untuned, a simpler one, if
        that is faster.
        """
        gains = self._gains(rivals, all_of_them=True)
        faster = self.untuned in rivals and gains[self.untuned].speed > gains[self.best].speed
        if faster and not self._fault(self.untuned):
            self.best = self.untuned
        return gains

    def _gains(
        self, contenders: Sequence[Variant], *, all_of_them: bool = False
    ) -> Mapping[Variant, Gain]:
        """What variants gain over the best, which is among them."""
        runs = {v: self._ready_for(v).lowered.run for v in dict.fromkeys([self.best, *contenders])}
        return self.measure(runs, self.best, self.inputs, all_of_them=all_of_them)

    def _ready_for(self, variant: Variant) -> Ready:
        if variant not in self.ready:
            args = (self.device, self.options, self.samples)
            self.ready[variant] = prepare(self.space.graph, variant, *args)
        return self.ready[variant]


def _moved(before: Variant, after: Variant) -> tuple[str, ...]:
    """The layers that are out of int8 after, and were in it before, on one runtime."""
    if before.runtime != after.runtime:
        return ()
    in_float, narrow = after.in_float | after.in_bfloat16, before.in_float | before.in_bfloat16
    return tuple(sorted(in_float - narrow))
