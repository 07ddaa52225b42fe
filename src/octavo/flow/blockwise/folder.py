"""`quantize_folder`: a model larger than memory, from a folder in Hugging Face's layout to another.

One block of the model after the other is read, quantized and written as a shard. A shard that is
there is done: it says itself of which model and settings it is, so that the same call goes on
behind it. The config.json that makes a folder of the shards is written last.

Tested in tests/flow/blockwise/test_folder.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from octavo.arguments import PATH, expect
from octavo.errors import ArtifactError, InputError, optional_import, warn_user
from octavo.flow.blockwise.blocks import chains_of
from octavo.flow.blockwise.folder_data import FolderData
from octavo.flow.blockwise.measuring_inputs import layer_of
from octavo.flow.blockwise.rounding import check_methods, require_no_data, round_without_data
from octavo.flow.modules import Asked, nothing_quantized
from octavo.flow.replacing import Decided, Decision, Replaced, layers_of
from octavo.flow.settings import Only, Settings
from octavo.model.files import sealed
from octavo.model.files.atomic import replacing, require_writable
from octavo.model.language.freed_memory import give_back_freed_memory
from octavo.model.language.shards import VERSION, read_shard, write_shard
from octavo.model.language.stored_layers import described, tensors_of
from octavo.model.nn import quantized_form
from octavo.model.nn.linear import Linear
from octavo.model.tree import put
from octavo.progress import track
from octavo.quantization.qconfig import QConfig, QConfigMapping, is_inside, mapping_of
from octavo.quantization.weights import METHODS, Rotation, Rounded, WeightMethod

if TYPE_CHECKING:
    from octavo.model.language.source_folder import SourceFolder

_BESIDE = (".json", ".txt", ".model", ".jinja", ".md")  # of tokenizers, settings and licences


def quantize_folder(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    calibration: Any = None,
    mode: str = "weight_only",
    qconfig: QConfig | QConfigMapping | None = None,
    target: str = "x86",
    only: Only | None = None,
    weights: Sequence[WeightMethod] = (),
    progress: bool = True,
) -> Path:
    """Quantize the model in a folder, without ever holding more than a block of it.

    Memory holds the float weights of one decoder block, table or head at a time. A call that was
    cut off leaves finished shards and nothing else; the same call goes on behind them. Needs the
    extra ``transformers``.

    Args:
        path: a folder in Hugging Face's layout: config.json, and safetensors, sharded or not.
        out: the folder to write, in that layout; files of the tokenizer and the like are copied
            from ``path``. It may not hold another model.
        calibration: batches of tokens, as `octavo.quantize` takes them, for methods that measure
            inputs, and for a rotation, which is tried on the first. Of all of them what one block
            reads is kept. Layers outside of the blocks are rounded by the methods that need no
            data.
        mode, qconfig, target, only: as `octavo.quantize` takes them.
        weights: methods, ``[octavo.Clip(by_input=False)]``, or with data
            ``[octavo.Rotation(), octavo.AWQ(), octavo.Clip(), octavo.GPTQ()]``; to nearest without.
        progress: show a progress bar on a terminal.

    Returns:
        ``out``. ``AutoModelForCausalLM.from_pretrained(out)`` loads it, in a process that imports
        `octavo.flow.transformers`.

    Raises:
        InputError: ``path`` is no such folder, its model is quantized already or needs code of its
            own, or ``out`` holds another one; methods come in an order in which they do nothing,
            or the model cannot be turned.
        PlanError: a rule names an unknown module, or nothing would be quantized.
        CalibrationError: a method measures inputs, and there is no data, or it does not fit.
        ArtifactError: a file is missing, cut off or damaged, lacks a tensor, or cannot be written.
        MissingExtra: transformers is not installed.

    Example:
        >>> octavo.quantize_folder(
        ...     "llama", "llama-int4", qconfig=octavo.weight_only_qconfig(4, group_size=32)
        ... )
        PosixPath('llama-int4')
    """
    with optional_import("transformers", "transformers", "read its models"):
        from octavo.model.language.source_folder import SourceFolder
    expect(PATH, path=path, out=out)
    expect(METHODS, weights=weights)
    source, folder = SourceFolder(Path(path)), Path(out)
    settings = Settings(target, mode, mapping=mapping_of(qconfig), weights=weights, only=only)
    data = None
    if calibration is not None and weights:
        data = FolderData.read(source, calibration, settings)
    job = _Job(source, settings, data)
    units = _units(source)
    files = [
        folder / f"model-{n:05}-of-{len(units):05}.safetensors" for n in range(1, len(units) + 1)
    ]
    _refuse_another(folder, files)
    require_writable(folder)
    is_new = not folder.exists()
    for file, names in track(list(zip(files, units, strict=True)), "quantizing", progress):
        if not job.has(file, names):
            job.quantize(file, names)
    if not job.parts:  # which groups fit is known of layers with values alone
        for file in files:
            file.unlink()
        if is_new:
            folder.rmdir()
        raise nothing_quantized(source.model, job.replaced.left)
    for remark in [*job.replaced.remarks(), *(data.remarks() if data is not None else ())]:
        warn_user(remark)
    _finish(folder, source, job)
    return folder


@dataclass
class _Job:
    """What is to be done to a model, and what is done by now.

    Attributes:
        source: the model.
        settings: how.
        data: what the next block reads; ``None`` without data.
        parts: the quantized layers that are written, as config.json describes them.
        places: name of each tensor that is written -> its file.
        size: of all of them, in bytes.
        replaced: an account of all layers.
    """

    source: SourceFolder
    settings: Settings
    data: FolderData | None
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def __post_init__(self) -> None:
        model = self.source.model
        self.replaced = Replaced(model)
        self._decide = Asked.of(model, self.settings).decide(model)
        self._layers = layers_of(model)
        wanted = {path: self._decide(path, layer) for path, layer in self._layers.items()}
        left = {path: str(how) for path, how in wanted.items() if not isinstance(how, QConfig)}
        if len(left) == len(wanted):
            raise nothing_quantized(model, left)
        linear = [
            layer_of(path, self._layers[path], how, self.settings.target)[0]
            for path, how in wanted.items()
            if isinstance(how, QConfig) and quantized_form(self._layers[path]) is Linear
        ]
        if self.data is None:
            require_no_data(linear, self.settings.weights)
        self._of = self._identity([path for path in wanted if path not in left])
        rounding = [m for m in self.settings.weights if not isinstance(m, Rotation)]
        if linear:
            check_methods(rounding, linear)
        self._rounding = replace(self.settings, weights=rounding)

    def _identity(self, chosen: Sequence[str]) -> str:
        """Tells this job from others: source, rules, methods and the layout of shards."""
        settings, rules = self.settings, self.settings.mapping or QConfigMapping()
        asked = [(str(rule), repr(rule.precision)) for rule in rules.rules]
        methods = repr(list(settings.weights))
        data = () if self.data is None else (self.data.identity,)
        how = (VERSION, settings.mode, settings.target, asked, chosen, methods, *data)
        return hashlib.sha256(f"{self.source.identity()}{how}".encode()).hexdigest()

    def has(self, file: Path, names: Sequence[str]) -> bool:
        """Whether a shard of tensors of these names is there; it is taken as it is.

        Raises:
            InputError: it is one of another model, or made otherwise.
            ArtifactError: it is damaged.
        """
        if not file.exists():
            return False
        of_what, parts, sizes = read_shard(file)
        if of_what != self._of:
            raise InputError(
                f"{file} is of another model, or was made by other rules, methods or data: give "
                "another folder, or remove it"
            )
        self._done(file, parts, sizes)
        path = None if self.data is None else self.data.block_of(names)
        if self.data is not None and path is not None:
            self.source.load(names)
            self.data.go_on(path, self.source.model, parts, sealed.read(file)[1])
            self.source.forget(set(names))
        return True

    def quantize(self, file: Path, names: Sequence[str]) -> None:
        """Read the tensors of these names, quantize their layers, and write a shard."""
        model, here = self.source.model, set(names)
        inside = {path for path in self._layers if any(is_inside(n, path) for n in names)}

        def decide(path: str, layer: nn.Module) -> Decision:
            return self._decide(path, layer) if path in inside else ""

        self.source.load(names)
        if self.data is not None:
            self.data.turn(names)
        decided = Decided.of(model, decide)
        rounded: Mapping[str, Rounded] = {}
        path = None if self.data is None else self.data.block_of(names)
        if self.data is not None and path is not None:
            rounded = self.data.round(path, model, decided.qconfigs, self._rounding)
        elif self._rounding.weights:
            settings = self._rounding
            if self.data is not None:
                settings = self.data.outside(model, decided.qconfigs, settings)
            rounded = round_without_data(model, decided.qconfigs, settings).rounded
        done = decided.replace(self.settings.target, rounded=rounded)
        parts = {path: part for path, part in described(model).items() if path in inside}
        tensors = tensors_of(model, parts) | self._floats(here, parts)
        write_shard(file, tensors, parts, self._of)
        self.replaced.notes += done.notes
        self.replaced.obstacles |= done.obstacles
        self.replaced.left |= {path: why for path, why in done.left.items() if path in inside}
        self.replaced.sizes = done.sizes | self.replaced.sizes
        self._done(file, parts, {name: t.numel() * t.itemsize for name, t in tensors.items()})
        for module in done.modules.values():
            put(model, module, nn.Module())
        self.source.forget(here)
        give_back_freed_memory()

    def _floats(self, names: set[str], parts: Mapping[str, Any]) -> dict[str, Tensor]:
        """What stays as it is; what is tied once."""
        seen: set[int] = set()
        floats: dict[str, Tensor] = {}
        for name, tensor in self.source.model.state_dict(keep_vars=True).items():
            is_own = name in names and not any(is_inside(name, path) for path in parts)
            if is_own and not tensor.is_meta and id(tensor) not in seen:
                seen.add(id(tensor))
                floats[name] = tensor.detach()
        return floats

    def _done(self, file: Path, parts: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self.parts |= parts
        self.places |= dict.fromkeys(sizes, file.name)
        self.size += sum(sizes.values())
        self.replaced.modules |= {path: self._layers[path] for path in parts}


def _units(source: SourceFolder) -> list[list[str]]:
    """The names of the model's tensors, in parts that are read at a time.

    A block of a list of blocks is a part, a table or head is one, and all that is small is one.
    Parts that share a tensor are one.
    """
    model = source.model
    layers = [path for path, layer in layers_of(model).items() if quantized_form(layer)]
    blocks = [path for chain in chains_of(model, layers) for path in chain.blocks]
    heads = [path for path in layers if not any(is_inside(path, block) for block in blocks)]
    units: dict[str, list[str]] = {}
    at: dict[str, str] = {}
    for name in model.state_dict():
        owner = next((path for path in (*blocks, *heads) if is_inside(name, path)), "")
        units.setdefault(owner, []).append(name)
        at[name] = owner
    for tied in source.tied:
        first = at[tied[0]]
        for other in {at[name] for name in tied} - {first}:
            moved = units.pop(other)
            units[first] += moved
            at |= dict.fromkeys(moved, first)
    return list(units.values())


def _refuse_another(folder: Path, files: Sequence[Path]) -> None:
    """Raise for a folder that holds what is not of this job.

    Raises:
        InputError: it does.
    """
    others = set(folder.glob("*.safetensors")) - set(files)
    if others or ((folder / "config.json").exists() and not all(map(Path.exists, files))):
        raise InputError(f"{folder} holds another model: give another folder")


def _finish(folder: Path, source: SourceFolder, job: _Job) -> None:
    """Write what makes a model of the shards, config.json last."""
    from octavo.flow.transformers import OctavoConfig
    from octavo.model.language.source_folder import INDEX

    for file in sorted(source.path.iterdir()):
        is_beside = file.suffix in _BESIDE or file.name.startswith(("LICENSE", "NOTICE"))
        if is_beside and file.is_file() and file.name not in ("config.json", INDEX):
            _copy(file, folder / file.name)
    index = {"metadata": {"total_size": job.size}, "weight_map": job.places}
    _write(folder / INDEX, index)
    schemes = [
        scheme
        for part in job.parts.values()
        for one in _descriptions(part["description"])
        for scheme in one["weights"].values()
    ]
    kinds = {(scheme["dtype"], scheme["group_size"]) for scheme in schemes}
    bits, group_size = None, None
    if len(kinds) == 1:
        ((dtype, group_size),) = kinds
        bits = int("".join(filter(str.isdigit, dtype)))
    settings = OctavoConfig(job.settings.mode, bits, group_size, modules=job.parts).to_dict()
    config = json.loads((source.path / "config.json").read_text())
    config.setdefault("dtype", config.pop("torch_dtype", str(source.dtype).removeprefix("torch.")))
    if job.data is not None:
        config |= job.data.changes
    _write(folder / "config.json", config | {"quantization_config": settings})


def _descriptions(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a layer, and of those inside of it."""
    inner = [one for many in description.get("parts", {}).values() for one in many]
    return [description, *inner]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n")


def _copy(old: Path, new: Path) -> None:
    try:
        with replacing(new) as file:
            shutil.copyfile(old, file)
    except shutil.Error as error:
        raise ArtifactError(f"cannot write {new}: {error}") from error
