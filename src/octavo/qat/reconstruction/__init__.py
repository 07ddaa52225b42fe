"""Rounded again, block by block, so that each block's output is near to the float model's."""

from octavo.qat.reconstruction.reconstruction import (
    BlockLearned,
    Chunks,
    Reconstructed,
    Reconstruction,
    reconstructed,
)

__all__ = ["BlockLearned", "Chunks", "Reconstructed", "Reconstruction", "reconstructed"]
