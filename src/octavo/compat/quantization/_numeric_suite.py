"""The names of ``torch.quantization._numeric_suite``."""

from octavo.compat.numeric_suite import compare_model_outputs, compare_model_stub, compare_weights

__all__ = ["compare_model_outputs", "compare_model_stub", "compare_weights"]
