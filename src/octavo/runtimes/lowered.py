"""What lowering gives: a function, and an account of how each part of the model runs in it.

Tested in tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.errors import RuntimeUnavailable
from octavo.quantization.qconfig import PRECISIONS


@dataclass(frozen=True)
class Options:
    """How a runtime runs a model; what is ``None`` is left to the runtime.

    Attributes:
        threads: of one call; ``None`` is torch's number, ``torch.get_num_threads()``.
        batch: the one batch size that the model will be called with, which lets a runtime choose
            its kernels for it; ``None`` for any.
        cache: folder where a runtime keeps what it compiled.
        precision: of what stays float: ``"float32"``, ``"bfloat16"``, or ``"auto"``, which is
            bfloat16 where the runtime has it and the CPU has instructions for it. ``None`` is
            float32 but for the layers that rules put in bfloat16.

    Raises:
        RuntimeUnavailable: more threads than cores, a number below one, or no such precision.
    """

    threads: int | None = None
    batch: int | None = None
    cache: Path | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise RuntimeUnavailable(
                f"threads={self.threads}, but this machine has {cores} cores; choose 1 to {cores}"
            )
        if self.batch is not None and self.batch < 1:
            raise RuntimeUnavailable(f"batch={self.batch}; a batch has at least one sample")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise RuntimeUnavailable(
                f"precision={self.precision!r}; choose one of {', '.join(map(repr, PRECISIONS))}"
            )

    def only(self, *names: str) -> Options:
        """With these of the options alone; the others are left to the runtime."""
        return Options(**{name: getattr(self, name) for name in names})

    def refuse(self, runtime: str, *known: str) -> None:
        """For a runtime that has no options but the known ones.

        Raises:
            RuntimeUnavailable: another option is set.
        """
        names = [n for n, value in vars(self).items() if value is not None and n not in known]
        if names:
            raise RuntimeUnavailable(
                f"the {runtime} runtime has no option {names[0]!r}; leave it out (the threads of "
                "torch itself are set by torch.set_num_threads)"
            )


@dataclass(frozen=True)
class Agreement:
    """A runtime's results against the oracle's, of the output that is farthest off.

    Attributes:
        sqnr_db: the oracle's signal over the difference; infinite where they are equal.
        bound_db: that of the oracle against itself with some integers a step off, less a margin;
            ``None`` where the results are so near that it was not needed.
        samples: how many were compared.
        agrees: whether every output is within its bound.
    """

    sqnr_db: float
    bound_db: float | None
    samples: int
    agrees: bool

    def __str__(self) -> str:
        near = "equal" if self.sqnr_db == math.inf else f"{self.sqnr_db:.1f} dB"
        bound = "" if self.bound_db is None else f", {self.bound_db:.1f} dB needed"
        return f"{near} on {self.samples} sample{'s' if self.samples > 1 else ''}{bound}"


@dataclass(frozen=True)
class Lowered:
    """A quantized graph made ready for one runtime.

    Attributes:
        run: from the graph's input tensors, in order, to its flat results.
        kernels: node of the graph -> the int8 kernel that runs it, alone or with its neighbours.
        fallbacks: node that reads integers but runs dequantized here -> why.
        note: what else there is to say, ``""`` for nothing.
        rounds: node whose kernel rounds what it reads, where the oracle does not -> the step, as a
            share of the largest value in each row.
        float_error: relative error of a float operator's result.
        precision: of what stays float, in words.
        agreement: how near this is to the oracle; ``None`` where it was not checked.
        held: constant that a kernel holds in a form of its own -> what gives it back.
        runtime: its name, which lowering fills in.
    """

    run: Callable[..., tuple[Any, ...]]
    kernels: Mapping[str, str]
    fallbacks: Mapping[str, str]
    note: str = ""
    rounds: Mapping[str, float] = field(default_factory=dict)
    float_error: float = 2.0**-18
    precision: str = "float32"
    agreement: Agreement | None = None
    held: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    runtime: str = ""
