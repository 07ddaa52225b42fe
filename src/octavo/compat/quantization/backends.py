"""The backends of ``torch.ao.quantization``, as targets."""

from __future__ import annotations

from octavo.errors import PlanError
from octavo.runtimes.cpu import host_target

# fbgemm and x86 leave a bit of the activations to CPUs without VNNI, wherever the model is
# quantized; x86-avx2 leaves it in the weights, and is as right on every CPU. None: the CPU at hand.
BACKENDS: dict[str, str | None] = {
    "fbgemm": "x86-avx2",
    "x86": "x86-avx2",
    "onednn": None,
    "qnnpack": "arm",
}
DEFAULT = "x86"


def target_of(backend: str) -> str:
    """The target that a backend's name stands for.

    Raises:
        PlanError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise PlanError(
            f"unknown backend {backend!r}; one of {sorted(BACKENDS)}, or use octavo.quantize with "
            "one of its targets"
        )
    return BACKENDS[backend] or host_target()
