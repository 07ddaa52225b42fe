"""The order in which candidates are tried: what helps most often first, at the least loss.

It is the recommended order of the literature (Wu et al. 2020, arXiv:2004.09602, section 6; Nagel
et al. 2021, arXiv:2106.08295, section 3): quantize all of it; find better ranges; leave the layers
that hurt most in float; train with rounding. Then layers that int8 makes slower are left in float,
and what is in float is tried in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from octavo.numerics.observers import MSE, Histogram, MovingAverageMinMax, Observer, Percentile
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QConfig, QSpec
from octavo.quantization.targets import qat_qconfig, static_qconfig, target
from octavo.searching.layer_times import LayerTime
from octavo.searching.trial import Candidate, Trial

T = TypeVar("T")
Walk = Generator[Candidate, Trial, None]
Tried = list[tuple[Candidate, Trial]]

_OBSERVERS: tuple[Observer, ...] = (
    Histogram(),
    MSE(),
    Percentile(percentile=99.99),
    MovingAverageMinMax(),
)


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    Attributes:
        target: where the model will run.
        max_drop: what the metric may lose.
        static: whether there is calibration data.
        bfloat16: whether layers in float may compute in it.
        four_bits: whether weights may have four bits.
        trained: whether there is a training loop.
        ranking: from a mode to the layers, the most sensitive first.
        slower: from a candidate to its layers that int8 makes slower here, the worst first.
    """

    target: str
    max_drop: float
    static: bool
    bfloat16: bool
    four_bits: bool
    trained: bool
    ranking: Callable[[str], Sequence[str]]
    slower: Callable[[Candidate], Sequence[LayerTime]]


class NotYet(Exception):
    """What the walk asks for has not been measured."""


class Known:
    """What a space has measured on request, so that it is measured once.

    Attributes:
        space: measures what is not known.
        only: raises `NotYet` there.
    """

    def __init__(self, space: Space) -> None:
        rankings: dict[str, Sequence[str]] = {}
        times: dict[str, Sequence[LayerTime]] = {}

        def ranking(mode: str) -> Sequence[str]:
            if mode not in rankings:
                rankings[mode] = space.ranking(mode)
            return rankings[mode]

        def slower(candidate: Candidate) -> Sequence[LayerTime]:
            if candidate.name not in times:
                times[candidate.name] = space.slower(candidate)
            return times[candidate.name]

        self.space = replace(space, ranking=ranking, slower=slower)
        self.only = replace(
            space,
            ranking=lambda mode: _of(rankings, mode),
            slower=lambda candidate: _of(times, candidate.name),
        )


def _of(known: Mapping[str, Sequence[T]], key: str) -> Sequence[T]:
    if key not in known:
        raise NotYet
    return known[key]


def walk(space: Space) -> Walk:
    """Candidates one by one; each is answered with its trial."""
    tried: Tried = []
    plain = Candidate("static", "all of it in int8", "static")
    if space.static:
        yield from _asked(plain, tried)
    dynamic = Candidate("dynamic", "ranges of each call, where layers allow it", "dynamic")
    yield from _asked(dynamic, tried)
    if space.static and not tried[0][1].meets(space.max_drop):
        for observer in _OBSERVERS:
            other = replace(
                plain,
                name=f"static, {observer.name}",
                reason="other ranges, as the default ones lose too much",
                qconfig=static_qconfig(space.target, observer=observer),
            )
            yield from _asked(other, tried)
    # Dynamic ranges may be enough and gain little: what fixed ones can do is looked into anyway.
    fixed = [(made, trial) for made, trial in tried if made.mode == "static" and not trial.error]
    best, nearest = min(fixed or tried, key=lambda pair: _drop(pair[1]))
    if nearest.error:
        return
    if not nearest.meets(space.max_drop):
        yield from _layers_in_float(space, best, tried)
        if space.trained:
            trained = Candidate(
                "trained with rounding",
                "quantization alone loses too much",
                "static",
                qat_qconfig(space.target),
                trained=True,
            )
            yield from _asked(trained, tried)
    yield from _slower_layers_in_float(space, tried)
    if space.bfloat16:
        yield from _float_in_bfloat16(space, tried)
    if space.four_bits:
        yield from _four_bits(space, best)


def _asked(candidate: Candidate, tried: Tried) -> Walk:
    tried.append((candidate, (yield candidate)))


def next_of(steps: Walk, trial: Trial) -> Candidate | None:
    """The candidate after this trial; ``None`` at the end."""
    try:
        return steps.send(trial)
    except StopIteration:
        return None


def foreseen(space: Space, known: Mapping[str, Trial], count: int) -> list[Candidate]:
    """The next candidates, at most so many, as far as they can be told.

    The guess is that none of those that are not known yet meets the budget: where quantizing all of
    it does, little else is tried, and where it does not, the walk is long.
    """
    steps, ahead = walk(space), list[Candidate]()
    candidate: Candidate | None = next(steps)
    try:
        while candidate is not None and len(ahead) < count:
            trial = known.get(candidate.name)
            if trial is None:
                ahead.append(candidate)
                trial = Trial(candidate.name, candidate.reason, candidate.in_float)
            candidate = next_of(steps, trial)
    except NotYet:
        pass
    return ahead


def _layers_in_float(space: Space, best: Candidate, tried: Tried) -> Walk:
    """The fewest of the most sensitive layers in float that are enough: doubled, then halved."""
    ranking = list(space.ranking(best.mode))

    def leaving(count: int) -> Candidate:
        return replace(
            best,
            name=f"{best.name}, {count} of {len(ranking)} layers in float",
            reason="the most sensitive layers stay float",
            in_float=tuple(ranking[:count]),
        )

    too_few, count = 0, 1
    while count < len(ranking):
        yield from _asked(leaving(count), tried)
        if tried[-1][1].meets(space.max_drop):
            break
        too_few, count = count, 2 * count
    else:
        return
    enough = count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        yield from _asked(leaving(middle), tried)
        if tried[-1][1].meets(space.max_drop):
            enough = middle
        else:
            too_few = middle


def _slower_layers_in_float(space: Space, tried: Tried) -> Walk:
    """What is enough, without the layers that int8 makes slower: whether that wins, is measured."""
    enough = _enough(space, tried)
    if not enough:
        return
    # The first with the fewest layers in float.
    best = min(enough, key=lambda candidate: len(candidate.in_float))
    slower = [time for time in space.slower(best) if time.layer not in best.in_float]
    if slower:
        worst = ", ".join(f"{time.layer} {time.int8_over_float:.2f}x" for time in slower[:3])
        left = replace(
            best,
            name=f"{best.name}, slower layers in float",
            reason=f"int8 makes {len(slower)} layers slower here: {worst}",
            in_float=(*best.in_float, *(time.layer for time in slower)),
        )
        yield from _asked(left, tried)


def _float_in_bfloat16(space: Space, tried: Tried) -> Walk:
    """The last of what is enough with layers in float, with these in bfloat16."""
    in_float = [candidate for candidate in _enough(space, tried) if candidate.in_float]
    if in_float:
        last = in_float[-1]
        yield replace(
            last,
            name=f"{last.name}, in bfloat16",
            reason="what stays float takes half the bytes",
            bfloat16=True,
        )


def _enough(space: Space, tried: Tried) -> list[Candidate]:
    """What meets the budget with fixed ranges, without training."""
    return [
        candidate
        for candidate, trial in tried
        if trial.meets(space.max_drop) and candidate.mode == "static" and not candidate.trained
    ]


def _four_bits(space: Space, best: Candidate) -> Walk:
    """Smaller weights: by themselves, and with rounding trained."""
    int4 = QSpec(Scheme("int4", symmetric=True, channel_axis=0, narrow_range=True), Histogram())
    yield Candidate("weight-only int4", "the smallest file", "weight_only", QConfig(None, int4))
    if best.mode == "static":
        config = best.qconfig or target(space.target).qconfig
        yield replace(
            best,
            name=f"{best.name}, 4-bit weights",
            reason="a smaller file",
            qconfig=replace(config, weight=int4),
        )
    if space.trained:
        yield Candidate(
            "trained with rounding, 4-bit weights",
            "a smaller file at less loss",
            "static",
            qat_qconfig(space.target, weight_bits=4),
            trained=True,
        )


def _drop(trial: Trial) -> float:
    return float("inf") if trial.drop is None else trial.drop
