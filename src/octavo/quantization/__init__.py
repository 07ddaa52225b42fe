"""What is quantized and how (plan), with which scales (calibrate), and the result (convert)."""
