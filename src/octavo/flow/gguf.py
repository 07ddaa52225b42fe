"""Language models out of GGUF files. Needs the extra ``gguf``.

>>> from octavo.flow.gguf import read_gguf         # doctest: +SKIP
>>> model, tokenizer = read_gguf("model.gguf")     # doctest: +SKIP
>>> q = octavo.quantize(model, mode="weight_only")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from octavo.errors import InputError, MissingExtra
from octavo.model.files.source_file import check_file, reason

try:
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer
except ImportError as error:
    raise MissingExtra("gguf and transformers", "gguf", "read GGUF files") from error


def read_gguf(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The causal language model of a GGUF file, and its tokenizer.

    Its weights, in whatever form the file has them, become float32: quantize the model then.

    Args:
        path: of the file.

    Returns:
        A model of transformers in evaluation mode, and a tokenizer of transformers.

    Raises:
        InputError: it is no such file, it is cut off, or of an architecture that transformers does
            not read from GGUF.
    """
    file = Path(path)
    _check(file)
    where, name = str(file.parent), file.name
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except Exception as error:  # whatever transformers makes of a file that it does not know
        raise InputError(f"transformers cannot read {file}: {reason(error)}") from error
    _forget_the_form_of_the_file(model)
    model.eval()
    return model, tokenizer


def _forget_the_form_of_the_file(model: Any) -> None:
    """Its weights are floats now, which transformers else takes for the integers of the file: it
    would not save them.
    """
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False


def _check(file: Path) -> None:
    """Refuse what is no whole GGUF file.

    Raises:
        InputError: it says what is wrong.
    """
    try:
        check_file(file)
        reader = gguf.GGUFReader(file)
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
    except Exception as error:  # of the reader, which indexes into whatever the file holds
        raise InputError(f"{file} is no GGUF file, or is damaged: {reason(error)}") from error
    if not ends or max(ends) > file.stat().st_size:
        raise InputError(f"{file} is cut off, or holds no tensors: get it again")
