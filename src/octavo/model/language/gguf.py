"""Language models out of GGUF files, and back. Needs the extra ``gguf``.

>>> from octavo.model.language.gguf import read_gguf         # doctest: +SKIP
>>> model, tokenizer = read_gguf("model.gguf")     # doctest: +SKIP
>>> q = octavo.quantize(model, mode="weight_only")  # doctest: +SKIP
>>> write_gguf(q, "int8.gguf", like="model.gguf")   # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo.errors import ExportError, InputError, MissingExtra
from octavo.model.files.atomic import replacing
from octavo.model.files.source_file import check_file, reason
from octavo.model.language.gguf_blocks import blocks_of, kind_of
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.model.nn import Embedding, Linear, QuantizedModule

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
    where = str(file.parent)
    # Other files of the folder may name code, for which whoever is at a terminal is asked else.
    how: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, **how, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **how)
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


_FLOATS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.float32}
# Whose rows of queries and keys the file has in another order.
_PERMUTED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
_ARCHITECTURES = {"llama": _PERMUTED, "qwen2": {}, "qwen3": {}}
_FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_1": 3}  # of gguf's LlamaFileType


def write_gguf(
    model: nn.Module, path: str | os.PathLike[str], *, like: str | os.PathLike[str]
) -> Path:
    """Write a quantized language model as a GGUF file, for llama.cpp and its kin.

    Linear layers and tables of 8 bits become ``Q8_0``, of 4 bits in groups that 32 divides
    ``Q4_0``, affine ones ``Q4_1``: the same integers, with scales in float16.

    Args:
        model: of transformers, weight-only; a Llama, Mistral or Qwen 2 or 3 without experts.
        path: of the file; one that is there is replaced.
        like: the GGUF file that the model was read from: tokenizer and settings are taken from it.

    Returns:
        The path.

    Raises:
        InputError: ``like`` is no whole GGUF file, is of another architecture, or of another model.
        ExportError: a layer has no form there.
        ArtifactError: the file cannot be written.
    """
    source, target = Path(like), Path(path)
    _check(source)
    reader = _Reader(source)
    said = reader.fields.get("general.architecture")
    architecture = "" if said is None else str(said.contents())
    permuted = _ARCHITECTURES.get(architecture)
    if permuted is None:
        raise InputError(
            f"{source} is of the architecture {architecture!r}: Octavo writes "
            f"{', '.join(_ARCHITECTURES)}"
        )
    tensors = {
        name: one for path, module in model.named_modules() for name, one in _stored(path, module)
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], len(reader.tensors))
    config: Any = model.config
    kinds: set[str] = set()
    there = {tensor.name for tensor in reader.tensors}
    with replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        for name, one in tensors.items():
            other = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if other not in there:
                if name == "lm_head.weight":  # it is the table's there
                    continue
                raise InputError(f"{source} has no {other or name!r}: it is of another model")
            heads = permuted.get(name.split(".")[-2])
            kind, rows = _rows(name, one)
            if heads is not None:
                rows = _interleaved(rows, getattr(config, heads))
            raw = None if kind is None else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(other, rows, raw_dtype=raw)
            kinds |= set() if kind is None else {kind}
            there.discard(other)
        if there:
            raise InputError(f"the model has no {min(there)!r}, which {source} has")
        _copy_fields(reader, writer, kinds)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return target


def _stored(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor | LinearIntegers]]:
    """The tensors of a module itself, by name; of a quantized layer its integers."""
    if isinstance(module, Linear | Embedding) and not getattr(module, "transposed", False):
        integers = LinearIntegers.of(path, module)
        yield f"{path}.weight", integers
        if integers.bias is not None:
            yield f"{path}.bias", integers.bias
    elif isinstance(module, QuantizedModule):
        raise ExportError(f"{path!r} is a {module!r}, which a GGUF file has no form for here")
    else:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}", parameter.detach()


def _rows(name: str, one: Tensor | LinearIntegers) -> tuple[str | None, Any]:
    """The kind of blocks, and the bytes of each row; of floats themselves."""
    if isinstance(one, Tensor):
        return None, one.to(torch.float32).numpy().astype(_FLOATS[one.dtype])
    try:
        return kind_of(one), blocks_of(one).numpy()
    except ValueError as error:
        raise ExportError(f"{name!r} cannot be written as GGUF: {error}") from None


def _interleaved(rows: Any, heads: int) -> Any:
    """Rows of queries and keys as llama.cpp has them: the halves of each head in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _copy_fields(reader: Any, writer: Any, kinds: set[str]) -> None:
    """All that a file says of its model, but for the form of its weights."""
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if name not in own and not name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if kinds:
        writer.add_file_type(min(_FILE_TYPES[kind] for kind in kinds))


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
