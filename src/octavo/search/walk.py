"""The order in which candidates are tried: what helps most often first, at the least loss.

It is the recommended order of the literature (Wu et al. 2020, arXiv:2004.09602, section 6; Nagel
et al. 2021, arXiv:2106.08295, section 3): quantize all of it; find better ranges; leave the layers
that hurt most in float; train with rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from octavo.observers import MSE, Histogram, MovingAverageMinMax, Observer, Percentile
from octavo.qconfig import QConfig, QSpec
from octavo.scheme import Scheme
from octavo.search.trial import Candidate, Trial
from octavo.targets import qat_qconfig, static_qconfig, target

Walk = Generator[Candidate, Trial, None]

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
        four_bits: whether weights may have four bits.
        trained: whether there is a training loop.
        ranking: from a mode to the layers, the most sensitive first.
    """

    target: str
    max_drop: float
    static: bool
    four_bits: bool
    trained: bool
    ranking: Callable[[str], Sequence[str]]


def walk(space: Space) -> Walk:
    """Candidates one by one; each is answered with its trial."""
    tried = []
    if space.static:
        plain = Candidate("static", "all of it in int8", "static")
        tried.append((plain, (yield plain)))
        if not tried[0][1].meets(space.max_drop):
            for observer in _OBSERVERS:
                config = static_qconfig(space.target, observer=observer)
                other = replace(
                    plain,
                    name=f"static, {observer.name}",
                    reason="other ranges, as the default ones lose too much",
                    qconfig=config,
                )
                tried.append((other, (yield other)))
    dynamic = Candidate("dynamic", "ranges of each call, where layers allow it", "dynamic")
    tried.append((dynamic, (yield dynamic)))
    best, found = min(tried, key=lambda pair: _drop(pair[1]))
    if found.error:
        return
    if not any(trial.meets(space.max_drop) for _, trial in tried):
        yield from _layers_in_float(space, best)
        if space.trained:
            yield Candidate(
                "trained with rounding",
                "quantization alone loses too much",
                "static",
                qat_qconfig(space.target),
                trained=True,
            )
    if space.four_bits:
        yield from _four_bits(space, best)


def next_of(steps: Walk, trial: Trial) -> Candidate | None:
    """The candidate after this trial; ``None`` at the end."""
    try:
        return steps.send(trial)
    except StopIteration:
        return None


def _layers_in_float(space: Space, best: Candidate) -> Walk:
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
        trial = yield leaving(count)
        if trial.meets(space.max_drop):
            break
        too_few, count = count, 2 * count
    else:
        return
    enough = count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        trial = yield leaving(middle)
        if trial.meets(space.max_drop):
            enough = middle
        else:
            too_few = middle


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
