"""A folder in Hugging Face's layout, read part by part. Needs the extra ``transformers``.

The model is built without values, on the meta device; the tensors of one part of it after the other
get theirs, through the renames and conversions that transformers has for files of this model.

Tested in tests/flow/blockwise/test_folder.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from octavo.errors import ArtifactError, InputError, MissingExtra
from octavo.model.files import tensor_file
from octavo.model.files.source_file import check_file, reason
from octavo.model.language.layouts.layout import Layout

try:
    import transformers
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        convert_and_load_state_dict_in_model,
        rename_source_key,
    )
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils import logging
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "read Hugging Face's folders") from error

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"


class SourceFolder:
    """A float model in a folder.

    Args:
        path: of the folder.
        layout: of the quantized layers that the files have; float models alone without.

    Attributes:
        path: of the folder.
        model: of its class, in evaluation mode; parameters are on the meta device.
        files: name of each tensor in the files -> the file.
        held: path of each quantized layer in the files -> its sizes, ``[out, in]``. In its place in
            the model stands a module that has its tensors.
        tied: the names of each parameter in the model; several where it is tied.

    Raises:
        InputError: it is no such folder, its model needs code of its own, or is quantized.
        ArtifactError: a file is missing or damaged, or lacks a tensor of the model.
    """

    def __init__(self, path: Path, layout: Layout | None = None) -> None:
        self.path = path
        self.config = _config(path, is_float=layout is None)
        self.files = _files(path)
        self.dtype = self._dtype()
        self.model: Any = self._without_values()
        self.held = {} if layout is None else self._hold(layout)
        self._mapping: Any = get_model_conversion_mapping(self.model)
        self._places = self._by_place()
        self._owners = dict(self.model.named_modules(remove_duplicate=False))
        self.tied = self._tied()
        self._check_whole()

    def identity(self) -> str:
        """Tells this folder, as it is now, from others."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in sorted(set(self.files.values())):
            status = file.stat()
            digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def load(self, names: Collection[str]) -> None:
        """Give some tensors of the model, by their names in its state dict, their values.

        Raises:
            ArtifactError: a tensor cannot be read, or does not fit the model.
        """
        keys = [key for name in names for key in self._places.get(name, ())]
        options = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._mapping,
        )
        with ExitStack() as stack, _in_turn():
            try:
                opened = {
                    file: stack.enter_context(safe_open(file, framework="pt"))
                    for file in {self.files[key] for key in keys}
                }
                slices = {key: opened[self.files[key]].get_slice(key) for key in keys}
                found, _ = convert_and_load_state_dict_in_model(self.model, slices, options, None)
            except (OSError, SafetensorError, RuntimeError, ValueError) as error:
                raise ArtifactError(f"{self.path} cannot be read: {reason(error)}") from error
        if found.conversion_errors:
            name, why = next(iter(found.conversion_errors.items()))
            raise ArtifactError(f"{name!r} of {self.path} cannot be converted: {why}")
        for name, there, here in found.mismatched_keys:
            raise ArtifactError(
                f"{name!r} of {self.path} is {list(there)}, and {list(here)} by its config.json: "
                "the files are of different models"
            )
        self._tie(names)

    def _tie(self, names: Collection[str]) -> None:
        """Let what is tied be one tensor again, where one of it was read."""
        for tied in self.tied:
            if tied[0] in names:
                read = (self.model.get_parameter(name) for name in tied)
                value = next(parameter for parameter in read if not parameter.is_meta)
                for name in tied:
                    path, _, leaf = name.rpartition(".")
                    self.model.get_submodule(path)._parameters[leaf] = value

    def forget(self, names: Collection[str]) -> None:
        """Let go of the values of parameters, also of layers that others stand in the places of."""
        for name in names:
            module = self._owners[name.rpartition(".")[0]]
            parameter = module._parameters.get(leaf := name.rpartition(".")[2])
            if parameter is not None:
                parameter = parameter.detach().to("meta")
                module._parameters[leaf] = nn.Parameter(parameter, requires_grad=False)

    def _dtype(self) -> torch.dtype:
        """As the config says, else that of the first float tensor."""
        said = self.config.dtype
        if isinstance(said, torch.dtype):
            return said
        file = next(iter(self.files.values()))
        with safe_open(file, framework="pt") as opened:
            slices = (opened.get_slice(name) for name in opened.keys())  # noqa: SIM118
            dtypes = (tensor_file.dtype_of(one.get_dtype()) for one in slices)
            return next((d for d in dtypes if d.is_floating_point), torch.float32)

    def _without_values(self) -> Any:
        name = next(iter(self.config.architectures or ()), "")
        kind = getattr(transformers, name, None)
        build: Any = AutoModelForCausalLM.from_config if kind is None else kind._from_config
        try:
            with init_empty_weights(include_buffers=False):
                model = build(self.config, dtype=self.dtype)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise InputError(
                f"transformers cannot build the model of {self.path}: {reason(error)}"
            ) from error
        model.tie_weights()
        said = self.path / "generation_config.json"
        if said.exists():
            try:
                model.generation_config = GenerationConfig.from_pretrained(self.path)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise InputError(f"transformers cannot read {said}: {reason(error)}") from error
        return model.eval()

    def _hold(self, layout: Layout) -> dict[str, tuple[int, int]]:
        """Make room for the tensors of quantized layers."""
        paths = [key.rpartition(".")[0] for key in self.files if key.endswith(f".{layout.marks}")]
        modules, held = dict(self.model.named_modules()), {}
        for path in paths:
            layer = modules.get(path)
            if not isinstance(layer, nn.Linear):
                raise InputError(
                    f"{self.path} has a quantized layer {path!r}, and a "
                    f"{type(self.model).__name__} has no linear layer there; stacked experts are "
                    "not read"
                )
            held[path] = (layer.out_features, layer.in_features)
            room = nn.Module()
            for name in (*layout.names, "bias"):
                if (key := f"{path}.{name}") in self.files:
                    with safe_open(self.files[key], framework="pt") as file:
                        one = file.get_slice(key)
                        kind = tensor_file.dtype_of(one.get_dtype())
                        meta = torch.empty(one.get_shape(), dtype=kind, device="meta")
                    room.register_buffer(name, meta)
            self.model.set_submodule(path, room, strict=True)
        return held

    def _by_place(self) -> dict[str, list[str]]:
        """Name of a tensor of the model -> the tensors of the files that it is made of."""
        metas = self.model.state_dict()
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        places: dict[str, list[str]] = {}
        for key in self.files:
            prefix = self.model.base_model_prefix
            name, _ = rename_source_key(key, renamings, converters, prefix, metas)
            if name not in metas and key in metas:
                name = key
            places.setdefault(name, []).append(key)
        return places

    def _tied(self) -> list[list[str]]:
        """The names of each parameter that has several, or one."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return list(names.values())

    def _check_whole(self) -> None:
        """Refuse files that lack a tensor of the model."""
        # A converter makes several tensors of the model out of one of the files.
        many = [one for one in self._mapping if len(getattr(one, "target_patterns", ())) > 1]
        made = [pattern for one in many for pattern in one.target_patterns]
        optional = [*made, *(self.model._keys_to_ignore_on_load_missing or ())]
        for names in self.tied:
            is_there = any(name in self._places for name in names)
            if not is_there and not any(re.search(one, names[0]) for one in optional):
                raise ArtifactError(
                    f"{self.path} lacks the tensor {names[0]!r} of a "
                    f"{type(self.model).__name__}: get its files again"
                )


def _config(path: Path, is_float: bool) -> Any:
    try:
        check_file(path / "config.json")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a file that it does not know
        raise InputError(
            f"{path} is no folder of a model of transformers: its config.json: {reason(error)}"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        if is_float:
            raise InputError(
                f"the model in {path} is quantized already: start from the float model"
            )
        del config.quantization_config
    return config


def _files(path: Path) -> dict[str, Path]:
    """Name of each tensor -> its file, each of which is whole."""
    index = path / INDEX
    if index.exists():
        try:
            names: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
            files = {name: path / Path(str(file)).name for name, file in names.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{index} is malformed: {error}") from None
    else:
        files = {}
    held: dict[Path, set[str]] = {}
    for file in set(files.values()) or {path / _WHOLE}:
        try:
            check_file(file)
            held[file] = set(tensor_file.read_names(file))
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{file} is missing, cut off or damaged: {reason(error)}") from None
    for name, file in files.items():
        if name not in held[file]:
            raise ArtifactError(f"{file} lacks the tensor {name!r} that {index.name} names in it")
    return files or dict.fromkeys(sorted(held[path / _WHOLE]), path / _WHOLE)


@contextmanager
def _in_turn() -> Iterator[None]:
    """transformers reads one tensor after the other meanwhile, and shows no progress of its own.

    Its threads would each keep what they have let go of: several blocks and not one.
    """
    bars: Any = logging
    shown, before = bars.is_progress_bar_enabled(), os.environ.get(_NO_THREADS)
    bars.disable_progress_bar()
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        del os.environ[_NO_THREADS]
        if before is not None:
            os.environ[_NO_THREADS] = before
