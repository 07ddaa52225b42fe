"""Small models of transformers, with random weights that are always the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision_shim  # noqa: F401  before transformers

# In the names that all configurations know.
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def built(name: str, **options: Any) -> Any:
    """A model by the name of its class, in evaluation mode.

    Args:
        name: of a class of transformers.
        options: of its configuration; what they leave out is as `SIZES` say, then as usual.
    """
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**{**SIZES, **options})).eval()
