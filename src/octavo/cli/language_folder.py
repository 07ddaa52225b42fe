"""What ``octavo quantize hf:PATH`` does.

Tested in tests/cli/test_language_models.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from octavo.cli import options
from octavo.cli.app import console, print_json

if TYPE_CHECKING:
    from octavo.quantization.qconfig import QConfigMapping


def mapping_of_rules(bits: int, group_size: int | None, rules: Sequence[str]) -> QConfigMapping:
    """What ``--bits``, ``--group-size`` and each ``--rule NAME=FORM`` say together.

    Raises:
        InputError: a rule has another form.
    """
    from octavo.errors import InputError
    from octavo.quantization.qconfig import QConfigMapping
    from octavo.quantization.targets import weight_only_qconfig

    forms = {
        "int8": weight_only_qconfig(),
        "int4": weight_only_qconfig(4, group_size=group_size),
        "float": None,
    }
    mapping = QConfigMapping().set_global(weight_only_qconfig(bits, group_size=group_size))
    for rule in rules:
        name, equals, form = rule.rpartition("=")
        if not name or not equals or form not in forms:
            raise InputError(
                f"--rule {rule!r}: give the name of a module and {', '.join(forms)}, such as "
                "self_attn=int8"
            )
        mapping = mapping.set_module_name_regex(rf"(.*\.)?{re.escape(name)}(\..*)?", forms[form])
    return mapping


_ROW, _ROWS = 512, 32  # tokens in a row of a text, and rows where no number is given


def quantize_language_model(
    model: str,
    output: str,
    mapping: QConfigMapping,
    as_json: bool,
    text: str | None = None,
    rows: int | None = None,
) -> None:
    """Quantize a folder or a GGUF file to a folder, and tell their sizes.

    Args:
        model: ``hf:PATH``.
        output: the folder to write.
        mapping: what becomes of which layers.
        as_json: whether sizes are told as JSON.
        text: a file of text by which weights are clipped and rounded (`Clip` and `GPTQ`); to
            nearest without.
        rows: so many of the text's rows of tokens, at most.
    """
    from octavo.cli.sources.language_model import check_folder, read_quietly
    from octavo.flow.blockwise.folder import quantize_folder

    path = Path(model.removeprefix(options.HUGGING_FACE))
    if path.suffix == ".gguf":
        with TemporaryDirectory(prefix="octavo-") as made:
            for part in read_quietly(path):
                part.save_pretrained(made)
            _date_as(path, Path(made))  # by which a call knows whether it goes on with another
            how = _by_text(made, text, rows)
            quantize_folder(made, output, qconfig=mapping, progress=not as_json, **how)
    else:
        check_folder(path)
        how = _by_text(str(path), text, rows)
        quantize_folder(path, output, qconfig=mapping, progress=not as_json, **how)
    before, after = _size(path), _size(Path(output))
    if as_json:
        print_json({"folder": output, "size_bytes": after, "source_bytes": before})
        return
    console().print(
        f"{output} has {after / 1e6:.1f} MB, {path} {before / 1e6:.1f} MB: "
        f'octavo generate {output} --prompt "..." writes with it',
        highlight=False,
        soft_wrap=True,
    )


def _by_text(folder: str, text: str | None, rows: int | None) -> dict[str, Any]:
    """How `quantize_folder` rounds by a text.

    Raises:
        InputError: the text is shorter than a row, or the tokenizer does not fit.
    """
    if text is None:
        return {}
    import torch

    from octavo.cli.sources.language_model import text_of_file, tokenizer_and_positions_of
    from octavo.errors import InputError
    from octavo.quantization.weights import GPTQ, Clip

    tokenizer, positions = tokenizer_and_positions_of(folder)
    tokens = torch.tensor([int(t) for t in tokenizer(text_of_file(text))["input_ids"]])
    row = min(_ROW, positions or _ROW)
    count = min(len(tokens) // row, rows or _ROWS)
    if count == 0:
        raise InputError(f"{text} has {len(tokens)} tokens: give a text of at least {row}")
    batches = list(tokens[: count * row].reshape(count, 1, row))
    return {"calibration": batches, "weights": [Clip(), GPTQ()]}


def _date_as(source: Path, folder: Path) -> None:
    """Give the files in a folder the date of what they were made of."""
    status = source.stat()
    for file in folder.iterdir():
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _size(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
