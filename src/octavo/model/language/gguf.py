"""Language models out of GGUF files. Needs the extra ``gguf``.

>>> from octavo.model.language.gguf import read_gguf         # doctest: +SKIP
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
        InputError: it is no such file, it is cut off or lacks tensors, or it is of an architecture
            that transformers does not read from GGUF.
    """
    file = Path(path)
    _check(file)
    where, name = str(file.parent), file.name
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except Exception as error:  # whatever transformers makes of a file that it does not know
        raise InputError(f"transformers cannot read {file}: {reason(error)}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:  # which transformers draws by chance, and goes on
        others = f" and {len(missing) - 1} other tensors" if len(missing) > 1 else ""
        raise InputError(
            f"{file} lacks {missing[0]}{others} of a {type(model).__name__}: get it again, or "
            "another file of this model"
        )
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
        reader = _Reader(file)
        counts = [field for name, field in reader.fields.items() if name.endswith(".block_count")]
        blocks = max((int(field.contents()) for field in counts), default=0)
    except Exception as error:  # of the reader, which indexes into whatever the file holds
        raise InputError(f"{file} is no GGUF file, or is damaged: {reason(error)}") from error
    if blocks > len(reader.tensors) or not reader.tensors:
        raise InputError(
            f"{file} is damaged: it holds {len(reader.tensors)} tensors for {blocks} blocks"
        )


class _Reader(gguf.GGUFReader):  # type: ignore[misc, unused-ignore]
    """Stops at the end of the file: gguf's own goes on there, as often as the file says."""

    def _get(self, offset: int, dtype: Any, count: int = 1, *options: Any, **named: Any) -> Any:
        values = super()._get(offset, dtype, count, *options, **named)
        if len(values) != int(count):
            raise ValueError(f"it is cut off: it ends before {int(count)} values at byte {offset}")
        return values
