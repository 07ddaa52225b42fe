"""What a layer's kernel takes in behind the layer, so that nothing is rounded between them.

Targets plan by it, and the ``torch`` runtime's kernels are matched by it.

Tested in tests/quantization/test_plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """Of one operator.

    Attributes:
        activations: those that its kernel applies to its result.
        addition: whether its kernel first adds another quantized tensor to it.
        halves_to_even: whether it rounds halves as the oracle does, behind any zero point.
    """

    activations: frozenset[str] = frozenset()
    addition: bool = False
    halves_to_even: bool = False


# Nothing but the rounding of its result.
NOTHING = Fusion()
# They leave a value as it is or clip it, which any kernel that stores integers can.
CLIPS = frozenset({"relu", "hardtanh"})

# The kernels of oneDNN that torch ships.
ONEDNN: Mapping[str, Fusion] = {
    "conv1d": Fusion(CLIPS),
    "conv2d": Fusion(CLIPS | {"hardswish", "silu"}, addition=True),
    "conv3d": Fusion(CLIPS),
    "conv_transpose2d": Fusion(CLIPS),
    "linear": Fusion(CLIPS | {"hardswish", "silu", "gelu", "leaky_relu", "tanh"}),
}

# Octavo's own kernels. Targets do not plan by them: not every installation has them.
NATIVE = Fusion(
    CLIPS | {"hardswish", "hardsigmoid", "silu", "sigmoid", "gelu", "tanh"},
    addition=True,
    halves_to_even=True,
)
