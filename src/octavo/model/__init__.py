"""What a user holds: a quantized model, its summary, and the files that it becomes."""
