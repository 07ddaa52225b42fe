"""Is one variant faster than another? Measured side by side, and by more than the noise."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.runtimes.timing import Call, Latency, interleave
from octavo.runtimes.tuning.variant import Variant

SECONDS = 0.5  # of timing for each of the contenders of one choice; each has five rounds at least
LEAST = 0.01  # a gain that is worth a change
REST_S = 0.03  # shorter than in a comparison that is shown, so that more can be tried
HOPELESS = 1.4  # times as long as the fastest at first sight: not looked at again
_FIRST_CALLS, _FIRST_S = 5, 0.2


@dataclass(frozen=True)
class Gain:
    """How many times as fast as another, and how much of that may be noise.

    Example:
        >>> Gain(1.2, 0.05).real, Gain(1.2, 0.25).real
        (True, False)
    """

    speed: float
    noise: float = 0.0

    @classmethod
    def between(cls, new: Latency, old: Latency) -> Gain:
        """Of the ratios within each round: their median, and how sure that is.

        Two standard errors of the median, and no less than what lies between it and the lower
        quartile: of few rounds two may be far off and not be seen in the error of the others.
        """
        pairs = zip(old.rounds, new.rounds, strict=True)
        ratios = [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]
        low, middle, _ = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = 1.4826 * statistics.median(abs(ratio - middle) for ratio in ratios)
        error = 1.2533 * spread / math.sqrt(len(ratios))
        return cls(middle, max(2 * error, middle - low))

    @property
    def real(self) -> bool:
        """Whether it is faster by more than the noise: three rounds of four show it at least."""
        return self.speed > 1 + max(LEAST, self.noise)


Runs = Mapping[Variant, Callable[..., Any]]


class Measure(Protocol):
    """What each of the variants gains over one of them, which takes part in every round.

    With ``all_of_them`` the others do so too, however slow they are.
    """

    def __call__(
        self,
        runs: Runs,
        incumbent: Variant,
        inputs: tuple[Tensor, ...],
        *,
        all_of_them: bool = False,
    ) -> Mapping[Variant, Gain]: ...


def side_by_side(
    runs: Runs, incumbent: Variant, inputs: tuple[Tensor, ...], *, all_of_them: bool = False
) -> dict[Variant, Gain]:
    """In turns with rests, also before the first sight; without those that are hopeless at that.

    People call a model now and then. After a rest threads have to be woken, which takes some
    runtimes longer than others, and those of the contender before spin no more.
    """
    calls: dict[Variant, Call] = {variant: partial(run, *inputs) for variant, run in runs.items()}
    with torch.inference_mode():
        first = {variant: _first_sight(call) for variant, call in calls.items()}
        least = min(first.values())
        close = {
            variant: call
            for variant, call in calls.items()
            if all_of_them or variant == incumbent or first[variant] <= HOPELESS * least
        }
        times = interleave(close, budget_s=SECONDS * len(close), rest_s=REST_S)
    return {
        variant: Gain.between(times[variant], times[incumbent])
        if variant in times
        else Gain(first[incumbent] / first[variant])
        for variant in runs
    }


def _first_sight(call: Call) -> float:
    """Seconds of the quickest of a few calls, after a rest and one that makes things ready."""
    time.sleep(REST_S)
    call()
    seconds: list[float] = []
    while len(seconds) < _FIRST_CALLS and sum(seconds) < _FIRST_S:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
