"""The stages in a row: from a trained model to a quantized one in one call."""
