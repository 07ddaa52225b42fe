"""What quantization costs and brings: accuracy, speed, size, agreement, layer by layer."""
