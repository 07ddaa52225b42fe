"""What tuning found, as a table for people and as what a file keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from octavo.display import Result, Table
from octavo.runtimes.tuning.variant import Variant

NOISE = "not by more than the noise"


@dataclass(frozen=True)
class Trial:
    """One variant beside the fastest of before it.

    Attributes:
        choice: what was changed.
        value: to what.
        key: of the variant, see `Variant.key`.
        speed: how many times as fast as the fastest of before, the median of interleaved rounds;
            ``None`` where it was not measured.
        noise: how much of that may be chance, see `octavo.runtimes.tuning.gain.Gain`.
        kept: whether it is the fastest from then on.
        why: it was not, in words.
        layers: of the two on one runtime, those that are in int8 in the slower, and not in the
            faster.
    """

    choice: str
    value: str
    key: str
    speed: float | None = None
    noise: float = 0.0
    kept: bool = False
    why: str = ""
    layers: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """How many times as fast the faster of the two was."""
        return 1.0 if not self.speed else max(self.speed, 1 / self.speed)


@dataclass(frozen=True)
class Tuning(Result):
    """The fastest way to run a model on one kind of CPU. Prints as a table of what was tried.

    Attributes:
        kind: of the CPU, see `octavo.runtimes.cpu.kind`.
        best: the fastest variant.
        untuned: the fastest without tuning.
        trials: what was tried, in order.
        over_untuned: how many times as fast as that; ``None`` before it is finished.
        over_float: as fast as all in float on the same runtime; ``None`` before it is finished, or
            where that cannot run.
        seconds: that it took.
        finished: whether all that could be tried in its time was; if not, it can be resumed.
    """

    kind: str
    best: Variant
    untuned: Variant
    trials: tuple[Trial, ...] = ()
    over_untuned: float | None = None
    over_float: float | None = None
    seconds: float = 0.0
    finished: bool = False

    @property
    def slowed(self) -> dict[str, str]:
        """Layer -> why it does not run in int8 though it could."""
        measured = [t for t in self.trials if t.speed and (t.kept or t.speed < 1)]
        ranked = sorted(measured, key=lambda trial: -len(trial.layers))
        said = {name: trial for trial in ranked for name in trial.layers}  # of the fewest layers
        kinds = {"float": self.best.in_float, "bfloat16": self.best.in_bfloat16}
        return {
            name: f"{kind} is faster: {_in_words(said.get(name))}"
            for kind, names in kinds.items()
            for name in sorted(names)
        }

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        gains = [
            f"{gain:.2f}x as fast as {what}"
            for gain, what in ((self.over_untuned, "untuned"), (self.over_float, "in float"))
            if gain is not None
        ]
        state = [] if self.finished else ["not finished"]
        return "; ".join([f"tuned for this kind of CPU: {self.best}", *gains, *state])

    def table(self) -> Table:
        rows = (
            (
                trial.choice,
                trial.value,
                "-" if trial.speed is None else f"{trial.speed:.2f}x",
                "-" if trial.speed is None else f"{trial.noise:.2f}",
                "kept" if trial.kept else trial.why,
            )
            for trial in self.trials
        )
        title = f"{self.headline}\n{self.kind}, {self.seconds:.0f} s"
        notes = (
            f"speed is that of a variant over the fastest of before it; untuned is {self.untuned}",
        )
        return Table(("choice", "tried", "speed", "noise", "outcome"), tuple(rows), title, notes)

    def to_dict(self) -> dict[str, Any]:
        variants = {"best": self.best.to_dict(), "untuned": self.untuned.to_dict()}
        trials = [{field.name: getattr(t, field.name) for field in fields(t)} for t in self.trials]
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | variants | {"trials": trials}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tuning:
        """What `to_dict` gave, out of a file from anyone.

        Raises:
            ValueError, TypeError, KeyError: it is not that.
        """
        if not isinstance(data["kind"], str) or not isinstance(data["finished"], bool):
            raise TypeError(f"its kind is {data['kind']!r}")
        return cls(
            data["kind"],
            Variant.from_dict(data["best"]),
            Variant.from_dict(data["untuned"]),
            tuple(_trial(item) for item in data["trials"]),
            _optional(data["over_untuned"]),
            _optional(data["over_float"]),
            _number(data["seconds"]),
            data["finished"],
        )


def _in_words(trial: Trial | None) -> str:
    if trial is None:
        return "measured on this CPU"
    return f"with {trial.choice} in int8 the model takes {trial.gain:.2f}x as long"


def _trial(data: Mapping[str, Any]) -> Trial:
    texts = [data[name] for name in ("choice", "value", "key", "why")]
    layers = data["layers"]
    if not all(isinstance(text, str) for text in (*texts, *layers)):
        raise TypeError("a trial of it is malformed")
    return Trial(
        data["choice"],
        data["value"],
        data["key"],
        _optional(data["speed"]),
        _number(data["noise"]),
        bool(data["kept"]),
        data["why"],
        tuple(layers),
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)
