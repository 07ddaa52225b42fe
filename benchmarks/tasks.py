"""Trained networks with what they are for: the data, and the number that says how good answers are.

Two have the weights that others have trained: a reader of words, and a classifier of photographs.
The others are made of scikit-learn's real digits, and trained once: classification of hard digits,
scenes of digits whose pixels are classified, and the corners of a digit, which are a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import attention, hard_digits, keypoints, nets, photographs, scenes, words
from benchmarks.hard_digits import HardDigits
from benchmarks.static_peers import PEERS, PT2E

RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A number that says how good answers are.

    Attributes:
        name: with its unit.
        parts: of answers and what they shall be: what each sample adds, float64 ``[N, K]``.
        value: of the sums of the parts, ``[..., K]`` -> ``[...]``.
        largest_drop: how much worse a quantized model may be.
        more_is_better: whether a larger number is the better one.
    """

    name: str
    parts: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    largest_drop: float
    more_is_better: bool = True

    def drop(self, answers: Tensor, before: Tensor, truth: Tensor) -> tuple[float, float]:
        """How much worse answers are than those before, and the half of the interval that holds
        95 % of what other test images would have said: by the Poisson bootstrap, both answers on
        the same images.
        """
        pair = torch.stack([self.parts(before, truth), self.parts(answers, truth)])
        drawn = self._worse(_resamples(pair.shape[1]) @ pair)
        return float(self._worse(pair.sum(1))), 1.96 * float(drawn.std())

    def _worse(self, sums: Tensor) -> Tensor:
        before, after = self.value(sums)
        return before - after if self.more_is_better else after - before


@dataclass(frozen=True)
class Problem:
    """What networks are trained for.

    Attributes:
        metric: of their answers.
        calibration: batches of images, for each draw other ones.
        test: images, and what the answers shall be.
    """

    metric: Metric
    calibration: Callable[[HardDigits, int], list[Tensor]]
    test: Callable[[HardDigits], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LeftInFloat:
    """What peers leave in float of a network.

    Attributes:
        what: in words.
        operators: these.
        peers: who do; of the others nobody has looked.
    """

    what: str
    operators: Sequence[str]
    peers: Collection[str]


@dataclass(frozen=True)
class Task:
    """A trained network.

    Attributes:
        problem: that it solves.
        net: in evaluation mode.
        left: what peers leave in float of it.
        is_transformer: which peers want to be told.
    """

    problem: Problem
    net: Callable[[HardDigits], nn.Module]
    left: LeftInFloat | None = None
    is_transformer: bool = False


@cache
def _resamples(count: int) -> Tensor:
    """How often each of the samples is drawn, float64 ``[RESAMPLES, count]``."""
    chance = torch.Generator().manual_seed(0)
    return torch.poisson(torch.ones(RESAMPLES, count, dtype=torch.float64), generator=chance)


def _rightness(scores: Tensor, labels: Tensor) -> Tensor:
    right = (scores.argmax(1) == labels).double()
    return torch.stack([right, torch.ones_like(right)], 1)


def _read(scores: Tensor, classes: Tensor) -> Tensor:
    right = words.read_right(scores, classes).double()
    return torch.stack([right, torch.ones_like(right)], 1)


def _overlaps(scores: Tensor, classes: Tensor) -> Tensor:
    """Pixels that have a class in both, and in either, for each image and class."""
    told, true = (
        F.one_hot(found.flatten(1), scores.shape[1]).bool() for found in (scores.argmax(1), classes)
    )
    return torch.cat([(told & true).sum(1), (told | true).sum(1)], 1).double()


def _mean_share(sums: Tensor) -> Tensor:
    both, either = sums.chunk(2, -1)
    return 100 * (both / either).mean(-1)


def _distances(answers: Tensor, places: Tensor) -> Tensor:
    apart = keypoints.distances(answers, places)
    return torch.stack([apart, torch.ones_like(apart)], 1)


def _share(sums: Tensor) -> Tensor:
    return 100 * sums[..., 0] / sums[..., 1]


TOP1 = Metric("top-1 %", _rightness, _share, 0.3)
WORDS_RIGHT = Metric("words right %", _read, _share, 0.3)
AS_FLOAT = Metric("top-1 as float %", _rightness, _share, 3.0)  # many views show nothing clearly
MIOU = Metric("mIoU %", _overlaps, _mean_share, 0.3)
ERROR = Metric("error px", _distances, lambda sums: sums[..., 0] / sums[..., 1], 0.02, False)

DIGITS = Problem(TOP1, hard_digits.calibration_of, lambda data: (data.test, data.test_labels))
SCENES = Problem(MIOU, scenes.calibration_of, scenes.test_of)
WORDS = Problem(WORDS_RIGHT, lambda _, draw: words.calibration_of(draw), lambda _: words.test_of())
PHOTOGRAPHS = Problem(
    AS_FLOAT, lambda _, draw: photographs.calibration_of(draw), lambda _: photographs.test_of()
)
CORNERS = Problem(ERROR, hard_digits.calibration_of, keypoints.test_of)

_ATTENTION = ("scaled_dot_product_attention", "add", "layer_norm", "gelu", "mean")


def _of_digits(name: str, make: Callable[[], nn.Module]) -> Callable[[HardDigits], nn.Module]:
    return lambda data: hard_digits.trained(name, make, data)


# name -> the task
TASKS: Mapping[str, Task] = {
    words.NETWORK: Task(
        WORDS,
        lambda _: words.network(),
        LeftInFloat("recurrence", ("lstm",), tuple(PEERS)),
    ),
    photographs.NETWORK: Task(PHOTOGRAPHS, lambda _: photographs.network()),
    **{name: Task(DIGITS, _of_digits(name, make)) for name, make in nets.FOR_DIGITS.items()},
    attention.NETWORK: Task(
        DIGITS,
        attention.network,
        LeftInFloat("all but linear layers", _ATTENTION, (PT2E,)),
        is_transformer=True,
    ),
    "small GRU": Task(
        DIGITS,
        _of_digits("small GRU", nets.SmallGRU),
        LeftInFloat("recurrence", ("gru",), tuple(PEERS)),
    ),
    "small LSTM": Task(
        DIGITS,
        _of_digits("small LSTM", nets.SmallLSTM),
        LeftInFloat("recurrence", ("lstm",), tuple(PEERS)),
    ),
    scenes.NETWORK: Task(SCENES, scenes.network),
    keypoints.NETWORK: Task(CORNERS, keypoints.network),
}
