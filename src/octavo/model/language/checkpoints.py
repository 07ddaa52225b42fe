"""Quantized models in the layouts that others serve: read with the very same integers, and written.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from octavo.arguments import PATH, TEXT, expect
from octavo.arguments import described as described_value
from octavo.errors import ArtifactError, ExportError, InputError, warn_user
from octavo.model.files.atomic import filling
from octavo.model.files.source_file import check_file, reason
from octavo.model.language.graphs.folders import FOLDERS
from octavo.model.language.layouts.awq import AWQ
from octavo.model.language.layouts.compressed_tensors import COMPRESSED_TENSORS
from octavo.model.language.layouts.gptq import GPTQ
from octavo.model.language.layouts.layout import Layout
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.model.language.layouts.reordered import Reordered
from octavo.model.language.stored_layers import described, quantized_layers
from octavo.model.nn import Embedding, Linear

LAYOUTS: Mapping[str, Layout] = {one.name: one for one in (GPTQ, AWQ, COMPRESSED_TENSORS)}
WRITTEN = (*LAYOUTS, *FOLDERS)
_MOST = 4 * 2**30  # bytes in a file


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """A quantized language model that others have made: GPTQ, AWQ (gemm) or compressed-tensors.

    Its integers, scales and zero points are those of the files; nothing is rounded anew. Needs the
    extra ``transformers``.

    Args:
        path: a folder in Hugging Face's layout, whose config.json has a ``quantization_config``.

    Returns:
        A model of transformers in evaluation mode, with layers of `octavo.nn`, as `octavo.quantize`
        returns one.

    Raises:
        InputError: it is no such folder, is quantized in another way, or has layers that Octavo has
            no form for.
        ArtifactError: a file is missing, cut off or damaged, or lacks a tensor.

    Example:
        >>> int4 = octavo.weight_only_qconfig(4, group_size=32)
        >>> written = octavo.quantize(llama, scope="modules", mode="weight_only", qconfig=int4)
        >>> folder = octavo.write_checkpoint(written, "llama-gptq", format="gptq")
        >>> octavo.read_checkpoint(folder)(tokens).logits.shape
        torch.Size([1, 16, 512])
    """
    expect(PATH, path=path)
    folder = Path(path)
    settings = _settings(folder)
    layout = LAYOUTS.get(str(settings.get("quant_method")))
    if layout is None:
        raise InputError(
            f"{folder} is quantized by {settings.get('quant_method')!r}: Octavo reads "
            f"{', '.join(LAYOUTS)}"
        )
    groups = settings.get("config_groups") or {}
    if any(group.get("input_activations") for group in groups.values()):
        warn_user(f"{folder} rounds what its layers read, too: here that stays float")
    from octavo.model.language.source_folder import SourceFolder

    source = SourceFolder(folder, layout)
    if not source.held:
        raise InputError(f"{folder} has no layer with a {layout.marks}, which {layout.name} has")
    model = source.model
    source.load(list(model.state_dict()))
    for at, sizes in source.held.items():
        tensors = dict(model.get_submodule(at).named_buffers())
        bias = tensors.pop("bias", None)
        try:
            integers = layout.read(sizes, tensors, settings)
        except KeyError as error:
            raise ArtifactError(f"{folder} lacks {error} of {at!r}: get it again") from None
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise InputError(f"{at!r} of {folder} cannot be read: {error}") from None
        if not bool(torch.isfinite(integers.scale).all()):
            raise ArtifactError(f"{at!r} of {folder} has a scale that is no number")
        if bias is not None:
            integers = replace(integers, bias=bias.to(torch.float32))
        linear = integers.linear(source.dtype)
        layer = linear if integers.order is None else Reordered(linear, integers.order)
        model.set_submodule(at, layer.eval(), strict=True)
    return model


def write_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], format: str, *, tokenizer: Any = None
) -> Path:
    """Write a quantized language model in a layout that others serve.

    Weight-only layers of 4 or 8 bits keep their integers. There are two kinds of formats:

    - ``"gptq"``, ``"awq"`` and ``"compressed-tensors"``: safetensors with packed linear layers.
      Tables, and heads that are tied to one, are written in float, with a warning. Scales are
      float16 in the first two, as those layouts have them.
    - ``"onnxruntime-genai"`` and ``"openvino-genai"``: a graph with a cache, of decoders that are
      built as Llama's (Qwen 2 and 3, Mistral, SmolLM2). Tables are integers, scales and
      computations float32. The graph is run before it is written and compared with the model; what
      these packages round by themselves, so that they are quicker, is in docs/language_models.md.

    Args:
        model: of transformers, with layers of `octavo.nn`.
        path: a folder that is new, or has no model in it; its files are there all or not at all.
        format: one of these names.
        tokenizer: of transformers, for the model; its files are written, too. Without one the
            folder has none.

    Returns:
        The folder.

    Raises:
        InputError: there is no such format, the folder holds a model, or nothing is quantized.
        ExportError: a layer or the model has no form there, or the graph is not the model.
        ArtifactError: a file cannot be written.
        MissingExtra: a package is not installed that the format needs.

    Example:
        >>> int4 = octavo.weight_only_qconfig(4, group_size=32)
        >>> written = octavo.quantize(llama, scope="modules", mode="weight_only", qconfig=int4)
        >>> octavo.write_checkpoint(written, "llama-gptq", format="gptq")
        PosixPath('llama-gptq')
    """
    expect(PATH, path=path)
    expect(TEXT, format=format)
    folder = Path(path)
    if format not in WRITTEN:
        raise InputError(f"there is no format {format!r} to write: one of {', '.join(WRITTEN)}")
    config = getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        raise InputError(f"{described_value(model)} has no config: give a model of transformers")
    if not hasattr(tokenizer, "save_pretrained") and tokenizer is not None:
        raise InputError(f"{described_value(tokenizer)} is no tokenizer of transformers")
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds a model: give another folder")
    content = config.to_dict() | {"architectures": [type(model).__name__]}
    content.pop("quantization_config", None)
    with filling(folder, last="config.json") as made:
        if format in FOLDERS:
            if not any(True for _ in quantized_layers(model)):
                raise InputError("no layer of the model is quantized")
            FOLDERS[format](model, made, tokenizer)
        else:
            content["quantization_config"] = _write_layout(model, made, LAYOUTS[format])
        if getattr(model, "generation_config", None) is not None:
            _save(made, model.generation_config)
        if tokenizer is not None:
            _save(made, tokenizer)
        text = json.dumps(content, indent=2, default=str) + "\n"
        (made / "config.json").write_text(text)
    return folder


def _save(folder: Path, what: Any) -> None:
    """What transformers writes of a tokenizer, or of how texts are written.

    Raises:
        ExportError: it finds something wrong with it.
    """
    try:
        what.save_pretrained(folder)
    except ValueError as error:
        raise ExportError(f"a {type(what).__name__} cannot be written: {reason(error)}") from error


def _write_layout(model: nn.Module, folder: Path, layout: Layout) -> dict[str, Any]:
    """Write the tensors; how a config.json tells their layout."""
    parts = described(model)
    layers, floats = _layers(model, parts)
    tied = [path for path, part in parts.items() if "tied" in part]
    tensors = dict(_floats(model, {*layers, *floats})) | _floats_of(floats, tied)
    try:
        settings = layout.settings(layers, _float_linears(model, floats))
        for at, integers in layers.items():
            own = layout.write(integers) | (
                {} if integers.bias is None else {"bias": integers.bias}
            )
            tensors |= {f"{at}.{name}": tensor for name, tensor in own.items()}
    except ValueError as error:
        raise ExportError(f"the model cannot be written as {layout.name}: {error}") from None
    if floats:
        names = ", ".join(floats)
        warn_user(f"written in float, since {layout.name} has linear layers alone: {names}")
    _write_tensors(folder, tensors)
    return settings


def is_of_others(folder: Path) -> bool:
    """Whether `read_checkpoint` has a layout for the model in a folder.

    Raises:
        InputError: it has no config.json of a model.
    """
    return _settings(folder).get("quant_method") in LAYOUTS


def _settings(folder: Path) -> dict[str, Any]:
    try:
        check_file(folder / "config.json")
        config = json.loads((folder / "config.json").read_text())
        settings = dict(config.get("quantization_config") or {})
        groups = dict(settings.get("config_groups") or {})
        settings["config_groups"] = {name: dict(group) for name, group in groups.items()}
        return settings
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} has no config.json of a model: {reason(error)}") from None


def _layers(
    model: nn.Module, parts: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, LinearIntegers], dict[str, Embedding | Linear]]:
    """What keeps its integers, and what becomes float again, by their paths."""
    for path, module in model.named_modules():
        if isinstance(module, Reordered):
            raise ExportError(
                f"{path!r} groups its inputs in an order of its own, which is not written: convert "
                "a checkpoint without desc_act"
            )
    tied = {str(part["tied"]) for part in parts.values() if "tied" in part}
    layers: dict[str, LinearIntegers] = {}
    floats: dict[str, Embedding | Linear] = {}
    for path, module in quantized_layers(model):
        if isinstance(module, Embedding) or path in tied or "tied" in parts[path]:
            assert isinstance(module, Embedding | Linear)
            floats[path] = module
        elif isinstance(module, Linear) and not module.transposed:
            layers[path] = LinearIntegers.of(path, module)
        else:
            raise ExportError(f"{path!r} is a {module!r}, which other layouts have no form for")
    if not layers:
        raise InputError("no linear layer of the model is quantized, or all share their weights")
    return layers, floats


def _float_linears(model: nn.Module, floats: Mapping[str, nn.Module]) -> list[str]:
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    return [*linear, *(path for path, module in floats.items() if isinstance(module, Linear))]


def _floats(model: nn.Module, parts: set[str]) -> Iterator[tuple[str, Tensor]]:
    """What is float in the model, each tensor once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_inside = any(name.startswith(f"{path}.") for path in parts)
        if not is_inside and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def _floats_of(
    layers: Mapping[str, Embedding | Linear], tied: Collection[str]
) -> dict[str, Tensor]:
    """The float tensors of layers, in the dtype that they had; no weights of those that are tied to
    another.
    """
    return {
        f"{path}.{name}": tensor.to(module.dtype)
        for path, module in layers.items()
        for name, tensor in module.dequantized().items()
        if name != "weight" or path not in tied
    }


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.itemsize
        if size > _MOST and files[-1]:
            files.append({})
            size = tensor.numel() * tensor.itemsize
        files[-1][name] = tensor.contiguous().clone()
    places: dict[str, str] = {}
    for number, content in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        name = name if len(files) > 1 else "model.safetensors"
        try:
            save_file(content, folder / name, {"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise ArtifactError(f"cannot write {name}: {error}") from error
        places |= dict.fromkeys(content, name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)
