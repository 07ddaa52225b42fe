"""For code written for ``torch.ao.quantization``: its names, over Octavo's core.

``octavo.compat.quantization`` stands for ``torch.ao.quantization`` and ``torch.quantization``,
``octavo.compat.quantize_fx`` for its FX mode, and ``octavo.compat.numeric_suite`` for
``torch.ao.ns._numeric_suite``. See docs/compat.md.
"""
