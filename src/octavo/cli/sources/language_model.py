"""A language model on a command line: a folder in Hugging Face's layout, or a GGUF file.

Tested in tests/cli/test_language_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.errors import InputError, OctavoError, optional_import
from octavo.model.files.source_file import reason

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model of transformers, its tokenizer, and what it is called."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers; what is tied counts once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(held.values())

    def check_window(self, tokens: int) -> None:
        """Refuse more tokens at a time than the model has positions for.

        Raises:
            InputError: they are more.
        """
        config = self.model.config.get_text_config(decoder=True)
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise InputError(
                f"{self.name} has positions for {most} tokens, and would see {tokens} at a time: "
                f"give --window {most}"
            )

    def tokens_of(self, text: str, what: str) -> list[int]:
        """The tokens of a text.

        Args:
            text: it.
            what: the name of what it came by, for the error.

        Raises:
            InputError: it has none.
        """
        tokens = [int(token) for token in self.tokenizer(text)["input_ids"]]
        if not tokens:
            raise InputError(f"{what} is empty: give some text")
        return tokens


def load_language_model(path: str) -> LanguageModel:
    """The model and the tokenizer of a folder that ``save_pretrained`` wrote, float or quantized,
    by Octavo or as `octavo.read_checkpoint` reads it, or of a GGUF file. No code out of it is run,
    and nothing is downloaded.

    Raises:
        InputError: there is none, it cannot be read, it is no causal language model, or the
            tokenizer is missing or does not fit.
        MissingExtra: transformers, or gguf, is not installed.
    """
    where = Path(path)
    if where.suffix == ".gguf":
        return _fitting(LanguageModel(*read_quietly(where), where.stem))
    check_folder(where)
    _silence()
    from transformers import AutoTokenizer

    from octavo.model.language.checkpoints import is_of_others, read_checkpoint

    # Whoever is at a terminal is asked else whether a folder's code shall run.
    how = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = read_checkpoint(where) if is_of_others(where) else _read(path, how)
        tokenizer = AutoTokenizer.from_pretrained(path, **how)
    except OctavoError:
        raise
    except Exception as error:  # whatever transformers makes of a folder that it does not know
        raise InputError(f"transformers cannot read {path}: {reason(error)}") from error
    return _fitting(LanguageModel(model.eval(), tokenizer, where.resolve().name))


def _read(path: str, how: Mapping[str, Any]) -> Any:
    """A model that transformers reads: floats, or Octavo's own.

    Raises:
        InputError: it is no causal language model, or the folder lacks a tensor.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    import octavo.flow.transformers  # noqa: F401  (tells transformers of Octavo's folders)

    config = AutoConfig.from_pretrained(path, **how)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{path} holds a {next(iter(config.architectures or ()), config.model_type)}, which is "
            "no causal language model: in Python from_pretrained of its class loads it, and its "
            "generate writes"
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, **how, use_safetensors=True, output_loading_info=True
    )
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:  # which transformers draws by chance, and goes on
        raise InputError(f"{path} lacks {missing[0]} of a {type(model).__name__}: write it again")
    return model


def read_quietly(file: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, see `read_gguf`."""
    from octavo.model.language.gguf import read_gguf

    _silence()
    return read_gguf(file)


def tokenizer_and_positions_of(folder: str) -> tuple[Any, int | None]:
    """The tokenizer of the model in a folder, and how many tokens it has positions for; ``None``
    where it says nothing.

    Raises:
        InputError: they cannot be read, or the tokenizer does not fit.
    """
    _silence()
    from transformers import AutoConfig, AutoTokenizer

    how = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **how).get_text_config(decoder=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, **how)
    except Exception as error:  # whatever transformers makes of a folder that it does not know
        raise InputError(f"transformers cannot read {folder}: {reason(error)}") from error
    _check_fitting(tokenizer, config, folder)
    return tokenizer, getattr(config, "max_position_embeddings", None)


def _silence() -> None:
    """Of transformers no more than errors: its bars and hints are no part of a command's output."""
    with optional_import("transformers", "transformers", "run language models"):
        from transformers import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_folder(folder: Path) -> None:
    """Refuse what holds no model with a tokenizer.

    Raises:
        InputError: it says what is missing.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one that save_pretrained wrote")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            f"{folder} holds no tokenizer: write it there with "
            "tokenizer.save_pretrained(folder), or copy tokenizer.json from where the model is from"
        )


def _fitting(found: LanguageModel) -> LanguageModel:
    """The model, if the tokenizer is made for it."""
    config = found.model.config.get_text_config(decoder=True)
    _check_fitting(found.tokenizer, config, found.name)
    return found


def _check_fitting(tokenizer: Any, config: Any, name: str) -> None:
    known = config.vocab_size
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= known:
        raise InputError(
            f"the tokenizer of {name} does not fit: it has a token {largest}, and the model "
            f"has a table of {known}: take the tokenizer that the model was trained with"
        )


def text_of_file(path: str) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, or is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error


def set_threads(threads: int | None) -> None:
    """As many threads as a command is told."""
    if threads is not None:
        torch.set_num_threads(threads)
