"""How a runtime is asked to run a model.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
        joined: whether linear layers that read the same integers are one product; ``None`` is yes.
        channels_last: whether images are put in that order before anything reads them; ``None`` is
            no: what needs them so puts them so.
        programs: whether layers that Octavo's own kernels can run in native programs, without
            Python between them, are run so; ``None`` is yes, where these kernels are installed.

    Raises:
        RuntimeUnavailable: more threads than cores, a number below one, or no such precision.
    """

    threads: int | None = None
    batch: int | None = None
    cache: Path | None = None
    precision: str | None = None
    joined: bool | None = None
    channels_last: bool | None = None
    programs: bool | None = None

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
