"""What ``nn.TransformerEncoder`` does with padded tokens in evaluation, done while exporting.

Called with a padding mask it takes a faster way, on nested tensors, from which padded tokens come
back as zeros; where it is exported it does not. What reads all tokens afterwards, as a mean over
time does, sees the difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def zero_padded_tokens(model: nn.Module) -> None:
    """Let encoders return what they return in evaluation, by hooks that the caller takes away."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _Encoder(module)


class _Encoder:
    """The hooks of one encoder: what its last layer gives is zeroed, in front of the norm."""

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        self.encoder = encoder
        self.zeroed: Tensor | None = None
        encoder.register_forward_pre_hook(self.before, with_kwargs=True)
        last: nn.Module = encoder.layers[-1]
        last.register_forward_hook(self.after_last)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(("src", "mask", "src_key_padding_mask"), args, strict=False)) | kwargs
        padding = given.get("src_key_padding_mask")
        if padding is None or not self._takes_nested_tensors(given["src"], given.get("mask")):
            self.zeroed = None
            return
        valid = padding.logical_not()
        self.zeroed = ~valid
        if getattr(self.encoder, "mask_check", True):
            # It takes that way where all padding of the batch is at the end.
            self.zeroed = self.zeroed & (valid[:, :-1] | ~valid[:, 1:]).all()

    def after_last(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        if self.zeroed is None:
            return result
        return result.masked_fill(self.zeroed.unsqueeze(-1), 0.0)

    def _takes_nested_tensors(self, source: Tensor, mask: Tensor | None) -> bool:
        """The conditions of ``nn.TransformerEncoder.forward`` that do not depend on values."""
        first: Any = self.encoder.layers[0]
        return (
            torch.backends.mha.get_fastpath_enabled()
            and getattr(self.encoder, "use_nested_tensor", False)
            and not first.training
            and source.dim() == 3
            and mask is None
            and not torch.is_autocast_enabled()
        )
