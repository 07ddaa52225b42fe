"""The names of ``torch.ao.quantization.quantize_fx``.

Tested in tests/compat/quantization/test_names.py.
"""

from typing import Any

from octavo.compat.quantization.missing import missing
from octavo.compat.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx, prepare_qat_fx

__all__ = ["convert_fx", "fuse_fx", "prepare_fx", "prepare_qat_fx"]


def __getattr__(name: str) -> Any:
    raise missing(__name__, name)
