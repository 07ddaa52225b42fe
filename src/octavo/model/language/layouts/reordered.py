"""`Reordered`: a linear layer whose groups are not neighbours.

GPTQ may round the inputs of a layer in the order of their activations, and group them so
(``desc_act``). Octavo's groups are neighbours; so the inputs are put in that order at each call.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from octavo.model.nn.linear import Linear


class Reordered(nn.Module):
    """A linear layer behind a change of the order of its inputs.

    Args:
        linear: of Octavo's.
        order: which input each of its columns is for, int64 ``[in]``.
    """

    order: Tensor

    def __init__(self, linear: Linear, order: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("order", order)

    @property
    def weight(self) -> Tensor:
        """What the integers stand for, float32 ``[out, in]``, in the order of the inputs."""
        return self.linear.dequantized()["weight"][:, self.order.argsort()]

    def forward(self, input: Tensor) -> Tensor:
        """What the linear layer makes of an input ``[..., in]``."""
        result: Tensor = self.linear(input.index_select(-1, self.order))
        return result
