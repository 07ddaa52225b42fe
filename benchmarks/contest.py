"""Contenders that take turns in one process: their times, and their outputs against the first's."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.quiet import Others
from benchmarks.ratios import Spread, ratio
from benchmarks.report import problem
from octavo.measuring.metrics import Likeness
from octavo.runtimes.timing import Latency, interleave

Call = Callable[[], Tensor | None]  # `None` where there is nothing to compare
Maker = Callable[[], Call]


@dataclass
class Contest:
    """What was found; a contender that failed or was left out has a row, but no times.

    Other processes kept so many cores busy in the rounds, see `quiet.Others`.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: dict[str, Latency] = field(default_factory=dict)
    others_cores: float = 0.0

    def ratio(self, ours: str, theirs: str) -> Spread | None:
        """The median of one's time over another's within the rounds; ``None`` without times."""
        if ours not in self.times or theirs not in self.times:
            return None
        return ratio(self.times[ours].rounds, self.times[theirs].rounds)

    def median_ratio(self, ours: str, theirs: str) -> float | None:
        spread = self.ratio(ours, theirs)
        return None if spread is None else spread.median


def add_rounds(parser: ArgumentParser, seconds: float, each: str, slowest: float) -> None:
    """The options of a script for its contests: how long they take, and who takes part.

    Args:
        seconds, slowest: defaults, see `contest`.
        each: what there is a contest for.
    """
    parser.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of rounds for {each}")
    parser.add_argument(
        "--slowest", type=float, default=slowest, help="seconds of a call that takes part"
    )


def add_images(parser: ArgumentParser) -> None:
    """The options of a script for its images."""
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--size", type=int, default=224, help="of the images; default: %(default)s")


def contest(
    makers: Mapping[str, Maker],
    rounds: int | None,
    seconds: float,
    slowest: float,
    rest_s: float = 0.0,
) -> Contest:
    """Make every call, compare its result with the first one's, and time them in turns.

    Args:
        makers: name -> what makes the call to time; the first is the float reference.
        rounds: ``None`` takes what fits into ``seconds``, but at least 5.
        slowest: who needs more seconds for one call does not take part in the rounds.
        rest_s: see `interleave`; for contenders with threads of their own.
    """
    found = Contest({name: {"contender": name} for name in makers})
    calls: dict[str, Call] = {}
    reference = None
    with torch.no_grad():
        for name, make in makers.items():
            try:
                call = make()
                call()
                started = time.perf_counter()
                result = call()
                spent = time.perf_counter() - started
                if result is not None:
                    reference = result.float() if reference is None else reference
                    found.rows[name]["SQNR dB"] = sqnr_db(reference, result.float())
                if spent > slowest:
                    raise TimeoutError(f"left out: one call took {spent:.1f} s")
                calls[name] = call
            except Exception as error:  # noqa: BLE001  (whatever a contender raises is its result)
                found.rows[name]["error"] = problem(error)
        others = Others()
        found.times = interleave(calls, rounds=rounds, budget_s=seconds, rest_s=rest_s)
        found.others_cores = others.cores()
    for name, latency in found.times.items():
        found.rows[name] |= {
            "median ms": 1e3 * latency.median_s,
            "p95 ms": 1e3 * latency.p95_s,
            "rounds": len(latency.rounds),
        }
    return found


def sqnr_db(reference: Tensor, result: Tensor) -> float:
    likeness = Likeness()
    likeness.update(reference, result)
    return likeness.sqnr_db
