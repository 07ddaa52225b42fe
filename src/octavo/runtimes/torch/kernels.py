"""All int8 kernels of the ``torch`` runtime, by family.

Tested in tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from octavo.runtimes.torch import (
    attention,
    dynamic,
    integer_operators,
    native_layers,
    normalization,
    onednn,
    recurrent,
    transposed,
    weight_only,
)
from octavo.runtimes.torch.kernel import Kernel, Reads

_FAMILIES = (
    *(onednn, transposed, integer_operators, dynamic, weight_only, recurrent),
    *(attention, normalization, native_layers),
)
# Of several for one operator the last is tried first, so that one that is appended counts.
KERNELS: list[Kernel] = [kernel for family in _FAMILIES for kernel in family.KERNELS]


def kernels_of(operator: str, reads: Reads) -> list[Kernel]:
    """The kernels that may run an operator, in the order in which they are tried."""
    return [k for k in reversed(KERNELS) if operator in k.operators and k.reads is reads]
