"""What lowering gives: a function, and an account of how each part of the model runs in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import RuntimeUnavailable


@dataclass(frozen=True)
class Options:
    """How a runtime runs a model; what is ``None`` is left to the runtime.

    Attributes:
        threads: of one call; ``None`` is torch's number, ``torch.get_num_threads()``.
        batch: the one batch size that the model will be called with, which lets a runtime choose
            its kernels for it; ``None`` for any.
        cache: folder where a runtime keeps what it compiled.

    Raises:
        RuntimeUnavailable: more threads than cores, or a number below one.
    """

    threads: int | None = None
    batch: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise RuntimeUnavailable(
                f"threads={self.threads}, but this machine has {cores} cores; choose 1 to {cores}"
            )
        if self.batch is not None and self.batch < 1:
            raise RuntimeUnavailable(f"batch={self.batch}; a batch has at least one sample")

    def refuse(self, runtime: str) -> None:
        """For a runtime that has none of the options that are set here.

        Raises:
            RuntimeUnavailable: an option is set.
        """
        names = [name for name, value in vars(self).items() if value is not None]
        if names:
            raise RuntimeUnavailable(
                f"the {runtime} runtime has no option {names[0]!r}; leave it out (the threads of "
                "torch itself are set by torch.set_num_threads)"
            )


@dataclass(frozen=True)
class Lowered:
    """A quantized graph made ready for one runtime.

    Attributes:
        runtime: its name.
        run: from the graph's input tensors, in order, to its flat results.
        kernels: node of the graph -> the int8 kernel that runs it, alone or with its neighbours.
        fallbacks: node that reads integers but runs dequantized here -> why.
        note: what else there is to say, ``""`` for nothing.
    """

    runtime: str
    run: Callable[..., tuple[Any, ...]]
    kernels: Mapping[str, str]
    fallbacks: Mapping[str, str]
    note: str = ""
