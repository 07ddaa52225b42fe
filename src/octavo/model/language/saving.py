"""``save_pretrained`` of models of transformers that were quantized.

Tested in tests/flow/test_transformers.py.
"""

from __future__ import annotations

import sys

from torch import nn


def saved_by_transformers(model: nn.Module) -> None:
    """Let ``save_pretrained`` write integers together with what they mean, or refuse. Without that
    ``from_pretrained`` would take them for floats.

    Args:
        model: quantized layer by layer or in regions; of any kind.
    """
    if "transformers.modeling_utils" in sys.modules:  # else it is none of theirs
        from octavo.model.language.pretrained import tell

        tell(model)
