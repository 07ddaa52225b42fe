"""All int8 kernels of the ``torch`` runtime, by family.

Tested in tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from octavo.runtimes.torch import (
    attention,
    dynamic,
    integer_operators,
    onednn,
    recurrent,
    transposed,
    weight_only,
)
from octavo.runtimes.torch.kernel import Kernel, Reads

# Of several for one operator the last is taken, so that one that is appended counts.
KERNELS: list[Kernel] = [
    kernel
    for family in (
        onednn,
        transposed,
        integer_operators,
        dynamic,
        weight_only,
        recurrent,
        attention,
    )
    for kernel in family.KERNELS
]


def kernel_of(operator: str, reads: Reads) -> Kernel | None:
    """The kernel that runs an operator; ``None`` where there is none."""
    fitting = (k for k in reversed(KERNELS) if operator in k.operators and k.reads is reads)
    return next(fitting, None)
