"""ONNX: a quantized graph as an ONNX model, one converter an operator.

`writer` builds the model, `operators` says which converter writes which operator; the converters
lie in the other files, one theme each. Only `writer` imports the package ``onnx``.
"""
