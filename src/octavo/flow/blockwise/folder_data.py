"""What the blocks of a model in a folder read, of which one at a time is in memory.

The data runs through the model once with blocks that return what they read: what is kept of it is
what the first block reads, and the other arguments of each. From then on each block makes what the
next one reads, when it is rounded.

Tested in tests/flow/blockwise/test_folder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError, first_line
from octavo.flow.blockwise.blocks import Chain, chains_of, recorded
from octavo.flow.blockwise.checkpoint import Checkpoint, Digest
from octavo.flow.blockwise.finding_folds import find_folds
from octavo.flow.blockwise.folder_rotation import Turning
from octavo.flow.blockwise.measuring_inputs import FloatLayer, float_layers
from octavo.flow.blockwise.model_folds import Folds, shared_parameters, told_of_unscaled
from octavo.flow.blockwise.rotating import rotation_in
from octavo.flow.blockwise.rounding import BlockRounding, told_of_doubts
from octavo.flow.replacing import layers_of
from octavo.flow.running import Call, Calls
from octavo.flow.settings import Settings
from octavo.graph.batches import Signature, peek, split_batch
from octavo.model.language.stored_layers import layer_of
from octavo.model.nn import quantized_form
from octavo.model.nn.linear import Linear
from octavo.quantization.qconfig import QConfig, is_inside
from octavo.quantization.weights import Rescaling, Rounded, WeightMethod

if TYPE_CHECKING:
    from octavo.model.language.source_folder import SourceFolder

# Of causal language models; a model without values is not looked into for more.
_ARGUMENTS = Signature(("input_ids", "attention_mask", "position_ids", "token_type_ids"), 1)


@dataclass
class FolderData:
    """Data on its way through the blocks.

    Attributes:
        chain: the blocks, and what the next of them reads.
        first: the blocks, and what the first one reads in the first call.
        calls: of the model.
        identity: tells the data from others.
        turning: of the model, where it is turned.
        notes: what is to be said of layers, a sentence each.
        doubts: method and reason -> layers that it rounds worse than it could.
        unscaled: method -> layers whose inputs it could not scale.
    """

    chain: Chain
    first: Chain
    calls: Calls
    identity: str
    turning: Turning | None
    notes: list[str] = field(default_factory=list)
    doubts: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    unscaled: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, source: SourceFolder, calibration: Any, settings: Settings) -> FolderData:
        """Run all of it up to the first block.

        Raises:
            InputError: the model cannot be turned, and a method turns it.
            CalibrationError: the data cannot be used, or the model is no row of blocks.
        """
        rotation = rotation_in(settings.weights)
        model = source.model
        first, batches = peek(calibration)
        calls = Calls([_call(batch) for batch in first], map(_call, batches))
        assert calls.all is not None
        paths = [path for path, layer in layers_of(model).items() if quantized_form(layer)]
        chains = chains_of(model, paths)
        if len(chains) != 1:
            raise CalibrationError(
                f"a {type(model).__name__} has {len(chains)} rows of blocks, of which data can go "
                "through one: leave calibration= out, with methods that measure nothing"
            )
        blocks = chains[0].blocks
        heads = [
            path
            for path in paths
            if quantized_form(model.get_submodule(path)) is Linear
            and not any(is_inside(path, block) for block in blocks)
        ]
        outside = [
            name for name in model.state_dict() if not any(is_inside(name, path) for path in blocks)
        ]
        # A rotation is tried on what comes out of the heads.
        apart = [] if rotation is not None else heads
        source.load([n for n in outside if not any(is_inside(n, path) for path in apart)])
        try:
            form = _form_of_results(model, calls, blocks, apart)
            digest, turning = Digest(), None
            chain, before = (Chain(chains[0].path, blocks) for _ in range(2))
            with _passing_on(model, blocks, apart, form):
                if rotation is not None:
                    recorded(model, calls.first[:1], [before])
                    turning = Turning.of(model, rotation, calls.first[0], before)
                if not recorded(model, digest.reading(calls.all), [chain]):
                    raise CalibrationError(
                        "a batch goes through the blocks of the model otherwise than the first one "
                        "does: give batches that are alike"
                    )
        finally:
            source.forget(outside)
        if turning is not None:
            _try_first_block(source, turning)
        return cls(chain, chain.at_first(), calls, str(digest), turning)

    @property
    def changes(self) -> Mapping[str, Any]:
        """What config.json says otherwise than that of the model as it was."""
        is_untied = self.turning is not None and self.turning.notes
        return {"tie_word_embeddings": False} if is_untied else {}

    def block_of(self, names: Sequence[str]) -> str | None:
        """The block that holds tensors of these names."""
        return next((at for at in self.chain.blocks if is_inside(names[0], at)), None)

    def turn(self, names: Sequence[str]) -> None:
        """Turn what was just read, by the names of its tensors, where the model is turned.

        Raises:
            InputError: it cannot be turned.
        """
        path = self.block_of(names)
        if self.turning is not None and path is None:
            self.turning.turn(names)
        elif self.turning is not None:
            self.turning.turn_block(str(path))

    def round(
        self, path: str, model: nn.Module, qconfigs: Mapping[str, QConfig], settings: Settings
    ) -> dict[str, Rounded]:
        """Round the layers of a block that is in memory, and go on to what it returns then."""
        every = {one.layer.name: one for one in float_layers(model, qconfigs, settings.target)}
        methods = settings.weights
        layers = {at: one for at, one in every.items() if any(m.fits(one.layer) for m in methods)}
        folds = self._folds(path, model, layers, methods)
        nothing = Checkpoint(None, "")
        told = (self.notes, self.doubts)
        work = BlockRounding(model, layers, methods, self.calls, folds, nothing, *told)
        work.round_block(self.chain, path)
        return {at: one.now for at, one in layers.items()}

    @torch.no_grad()
    def _folds(
        self,
        path: str,
        model: nn.Module,
        layers: Mapping[str, FloatLayer],
        methods: Sequence[WeightMethod],
    ) -> Folds:
        """Where scales can go in a block. Nothing outside of it reads what is scaled in it: the
        model has run with blocks that compute nothing.
        """
        if not any(isinstance(method, Rescaling) for method in methods):
            return Folds.none()
        run = partial(self.first.run_once, path)
        block, shared = self.first.blocks[path], shared_parameters(model)
        folds = Folds({path: find_folds(block, run, layers, shared)})
        for method, at in folds.unscaled(methods, layers):
            self.unscaled.setdefault(method, []).append(at)
        return folds

    def remarks(self) -> list[str]:
        """What is to be said, a sentence each."""
        turned = [] if self.turning is None else self.turning.notes
        unscaled = told_of_unscaled(self.unscaled)
        return [*turned, *unscaled, *self.notes, *told_of_doubts(self.doubts)]

    def outside(
        self, model: nn.Module, qconfigs: Mapping[str, QConfig], settings: Settings
    ) -> Settings:
        """With the methods alone that need no data for layers outside of the blocks."""
        layers = [one.layer for one in float_layers(model, qconfigs, settings.target)]
        alone = [
            method
            for method in settings.weights
            if not any(method.fits(one) and method.statistic(one) is not None for one in layers)
        ]
        if len(alone) < len(settings.weights):
            names = ", ".join(repr(one.name) for one in layers)
            self.notes.append(
                f"{names}: outside of the blocks no inputs are measured, so methods that do were "
                "left out there"
            )
        return replace(settings, weights=alone)

    def go_on(
        self,
        path: str,
        model: nn.Module,
        parts: Mapping[str, Mapping[str, Any]],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Go on to what a block returns that was rounded before; its floats are in memory, as the
        source has them.
        """
        with torch.no_grad():
            held = model.state_dict(keep_vars=True)
            for name, floats in tensors.items():
                if not any(is_inside(name, at) for at in parts):
                    held[name].copy_(floats)  # scaled or turned
            for at, part in parts.items():
                own = {
                    name.removeprefix(f"{at}."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"{at}.")
                }
                layer, module = model.get_submodule(at), layer_of(part, own)
                for name, floats in module.dequantized().items():
                    is_turned = getattr(module, "transposed", False) and name == "weight"
                    layer.get_parameter(name).copy_(floats.t() if is_turned else floats)
        self.chain.hidden = self.chain.run(path)
        del self.chain.others[path]


def _call(batch: Any) -> Call:
    return Call(split_batch(batch, _ARGUMENTS))


def _try_first_block(source: SourceFolder, turning: Turning) -> None:
    """Turn it for a trial: what cannot be turned is told before anything is written.

    Raises:
        InputError: it cannot be turned.
    """
    path = next(iter(turning.chain.blocks))
    names = [name for name in source.model.state_dict() if is_inside(name, path)]
    source.load(names)
    turning.turn_block(path)
    source.forget(names)


def _form_of_results(
    model: nn.Module, calls: Calls, blocks: Mapping[str, nn.Module], heads: Sequence[str]
) -> Callable[[Tensor], Any]:
    """What the model expects of its blocks: a tensor, or a tuple with one."""
    forms: tuple[Callable[[Tensor], Any], ...] = (lambda x: x, lambda x: (x,))
    why = ""
    for form in forms:
        chain = Chain("", dict(blocks))
        try:
            with _passing_on(model, blocks, heads, form):
                if recorded(model, calls.first[:1], [chain]):
                    return form
        except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
            why = f" ({type(error).__name__}: {first_line(error)})"
    raise CalibrationError(
        f"the first batch does not go through the blocks of a {type(model).__name__}{why}: give "
        "batches that the model takes, or leave calibration= out, with methods that measure nothing"
    )


@contextmanager
def _passing_on(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    heads: Sequence[str],
    form: Callable[[Tensor], Any],
) -> Iterator[None]:
    """Blocks return what they read meanwhile, and heads zeros."""

    def passed(*args: Any, **kwargs: Any) -> Any:
        return form(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))

    def zeros_of(head: Any) -> Callable[[Tensor], Tensor]:
        rows = int(getattr(head, "out_features", 0) or head.nf)
        return lambda x: x.new_zeros(1).expand(*x.shape[:-1], rows)

    modules: list[Any] = [*blocks.values(), *(model.get_submodule(path) for path in heads)]
    functions = [*[passed] * len(blocks), *map(zeros_of, modules[len(blocks) :])]
    for module, function in zip(modules, functions, strict=True):
        module.__dict__["forward"] = function
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]
