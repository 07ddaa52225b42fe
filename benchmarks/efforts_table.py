"""What the rows of `efforts` come to: tables for the docs, and goals, of all draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.efforts_ways import BEST, EFFORTS, FAST, FLOAT, LARGEST_TIME, METHODS, like_peers
from benchmarks.report import Goal
from benchmarks.static_peers import NNCF_FULL, PEERS
from benchmarks.tasks import TASKS

LEAST_LEAD = 2.0  # dB before the best peer, on every network
LARGEST_NOISE = 0.5  # of the best peer's, in the geometric mean of all networks
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Draws:
    """The rows of one network, way -> its row for each draw."""

    network: str
    ways: Mapping[str, Sequence[Row]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> list[Draws]:
        """One for each network that there is."""
        found: dict[str, dict[str, list[Row]]] = {}
        for row in sorted(rows, key=lambda row: row["draw"]):
            found.setdefault(row["network"], {}).setdefault(row["way"], []).append(row)
        return [cls(name, found[name]) for name in TASKS if name in found]

    def column(self, way: str, key: str) -> list[float]:
        """Its values, draw by draw; none where a draw has failed."""
        values = [row.get(key) for row in self.ways.get(way, ())]
        return [] if None in values else values

    def mean(self, way: str, key: str) -> float | None:
        values = self.column(way, key)
        return fmean(values) if values else None

    @property
    def best_peer(self) -> str:
        """The one whose mean dB is the highest."""
        means = [(self.mean(way, "SQNR dB"), way) for way in PEERS]
        return max((mean, way) for mean, way in means if mean is not None)[1]

    def like_peers(self, way: str) -> str:
        """The way of Octavo's that is compared with peers."""
        return like_peers(way, TASKS[self.network].left)

    def leads(self, way: str) -> list[float]:
        """dB before the peer that is the best in the same draw, with the same layers in int8."""
        rivals = [self.column(peer, "SQNR dB") for peer in PEERS]
        best = [max(draw) for draw in zip(*filter(None, rivals), strict=False)]
        return [a - b for a, b in zip(self.column(way, "SQNR dB"), best, strict=False)]


def tables_of(rows: Sequence[Row]) -> list[str]:
    """In Markdown: dB of all ways, dB with in float what peers leave so, and the losses."""
    nets = Draws.of(rows)
    left = {net.network: task for net in nets if (task := TASKS[net.network].left) is not None}
    own = [*EFFORTS, *METHODS]
    whole = [[way, *(_db(net, way) for net in nets)] for way in own]
    whole += [
        [peer, *("" if _leaves(net, peer) else _db(net, peer) for net in nets)] for peer in PEERS
    ]
    some = [net for net in nets if net.network in left]
    alike = [[way, *(_db(net, net.like_peers(way)) for net in some)] for way in EFFORTS]
    alike += [[peer, *(_db(net, peer) for net in some)] for peer in PEERS]
    ways = [way for way in EFFORTS if way != FAST]
    losses = [
        [
            net.network,
            f"{net.ways[FLOAT][0]['metric']} {net.ways[FLOAT][0]['value']:.2f}",
            *(_drop(net, way) for way in ways),
            f"{net.best_peer}: {_drop(net, net.best_peer)}",
            *(_spread(net.leads(net.like_peers(way))) for way in ways),
        ]
        for net in nets
    ]
    titles = [
        "against the best peer",
        "float",
        *(f"lost, {way}" for way in ways),
        "lost, best peer",
    ]
    return [
        _table(["SQNR in dB", *(net.network for net in nets)], whole),
        _table(["in float what peers leave so", *left], alike),
        _table([*titles, *(f"dB ahead, {way}" for way in ways)], losses),
    ]


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """The mean of all draws: 2 dB above the best peer of the same layers in int8, little lost;
    never below `fast`, nor too long. And the noise of all networks together.
    """
    nets, goals = Draws.of(rows), []
    for net in nets:
        for way, times in LARGEST_TIME.items():
            label, leads = f"{net.network}: {way}", net.leads(net.like_peers(way))
            fast = net.mean(FAST, "SQNR dB") or 0.0
            seconds = [net.mean(each, "cpu seconds") for each in (way, FAST)]
            ratio = seconds[0] / seconds[1] if seconds[0] and seconds[1] else None
            most = TASKS[net.network].problem.metric.largest_drop
            goals += [
                Goal(f"{label}: dB above peers", _mean(leads), LEAST_LEAD, False),
                Goal(f"{label}: dB of fast", net.mean(way, "SQNR dB"), round(fast, 2), False),
                Goal(f"{label}: drop", net.mean(way, "drop"), most),
                Goal(f"{label}: times the seconds of fast", ratio, times),
            ]
        full = net.mean(NNCF_FULL, "cpu seconds"), net.mean(BEST, "cpu seconds")
        ratio = full[1] / full[0] if full[0] and full[1] else None
        goals.append(Goal(f"{net.network}: {BEST}: times the seconds of {NNCF_FULL}", ratio, 1.0))
    for way in LARGEST_TIME:
        means = [_mean(net.leads(net.like_peers(way))) for net in nets]
        known = [mean for mean in means if mean is not None]
        noise = 10 ** (-fmean(known) / 10) if known else None
        goals.append(Goal(f"all networks: {way}: noise of the best peer's", noise, LARGEST_NOISE))
    return goals


def _leaves(net: Draws, peer: str) -> bool:
    left = TASKS[net.network].left
    return left is not None and peer in left.peers


def _db(net: Draws, way: str) -> str:
    failed = any("error" in row for row in net.ways.get(way, ()))
    return "fails" if failed else _spread(net.column(way, "SQNR dB"))


def _drop(net: Draws, way: str) -> str:
    """With the half of its 95 % interval: chance of the test images, which all draws have."""
    drop, chance = net.mean(way, "drop"), net.mean(way, "+-")
    return "" if drop is None or chance is None else f"{drop:.3f} ± {chance:.3f}"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of draws."""
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
