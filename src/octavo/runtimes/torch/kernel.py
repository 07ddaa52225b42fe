"""An int8 kernel as one record.

Tested in tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from octavo.quantization.fusions import NOTHING, Fusion
from octavo.runtimes.torch.chains import Call, Chain, Context


class Reads(Enum):
    """What a kernel reads."""

    INTEGERS = auto()  # of a scale that is fixed
    OWN_RANGE = auto()  # integers with the scale of their own range, which is a number
    TENSOR_SCALES = auto()  # the same where scales are tensors: of each row, or for a compiler
    FLOATS = auto()  # beside weights that are integers


@dataclass(frozen=True)
class Kernel:
    """A kernel of the ``torch`` runtime.

    Attributes:
        operators: short names of the operators that it runs.
        call: makes the call for a chain of a layer and what stands behind it; what the kernel is
            called in summaries stands in it. Raises `Unsupported` for what it cannot run.
        reads: what the layer reads.
        fusion: what it takes in behind the layer; ``None`` where not even the result is rounded.
    """

    operators: tuple[str, ...]
    call: Callable[[Context, Chain], Call]
    reads: Reads = Reads.INTEGERS
    fusion: Fusion | None = NOTHING
