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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError, InputError, first_line
from octavo.flow.blockwise.blocks import Chain, chains_of, recorded
from octavo.flow.blockwise.checkpoint import Checkpoint, Digest
from octavo.flow.blockwise.measuring_inputs import float_layers
from octavo.flow.blockwise.model_folds import Folds
from octavo.flow.blockwise.rounding import BlockRounding, told_of_doubts
from octavo.flow.replacing import layers_of
from octavo.flow.running import Call, Calls
from octavo.flow.settings import Settings
from octavo.graph.batches import Signature, peek, split_batch
from octavo.model.nn import from_description, quantized_form
from octavo.model.nn.linear import Linear
from octavo.quantization.qconfig import QConfig, is_inside
from octavo.quantization.weights import Rescaling, Rotation, Rounded

if TYPE_CHECKING:
    from octavo.model.language.source_folder import SourceFolder

# Of causal language models; a model without values is not looked into for more.
_ARGUMENTS = Signature(("input_ids", "attention_mask", "position_ids", "token_type_ids"), 1)


@dataclass
class FolderData:
    """Data on its way through the blocks.

    Attributes:
        chain: the blocks, and what the next of them reads.
        calls: of the model.
        identity: tells the data from others.
        notes: what is to be said of layers, a sentence each.
        doubts: method and reason -> layers that it rounds worse than it could.
    """

    chain: Chain
    calls: Calls
    identity: str
    notes: list[str] = field(default_factory=list)
    doubts: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, source: SourceFolder, calibration: Any, settings: Settings) -> FolderData:
        """Run all of it up to the first block.

        Raises:
            InputError: a method changes the model before it rounds, which needs all of it.
            CalibrationError: the data cannot be used, or the model is no row of blocks.
        """
        changing = [m for m in settings.weights if isinstance(m, Rescaling | Rotation)]
        if changing:
            raise InputError(
                f"weights= has {changing[0].name!r}, which tries changes on the whole model: "
                "octavo.quantize takes it, of a model that memory holds"
            )
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
        names = [
            name
            for name in model.state_dict()
            if not any(is_inside(name, path) for path in (*blocks, *heads))
        ]
        source.load(names)
        try:
            form = _form_of_results(model, calls, blocks, heads)
            digest, chain = Digest(), Chain(chains[0].path, blocks)
            with _passing_on(model, blocks, heads, form):
                if not recorded(model, digest.reading(calls.all), [chain]):
                    raise CalibrationError(
                        "a batch goes through the blocks of the model otherwise than the first one "
                        "does: give batches that are alike"
                    )
        finally:
            source.forget(names)
        return cls(chain, calls, str(digest))

    def block_of(self, names: Sequence[str]) -> str | None:
        """The block that holds tensors of these names."""
        return next((at for at in self.chain.blocks if is_inside(names[0], at)), None)

    def round(
        self, path: str, model: nn.Module, qconfigs: Mapping[str, QConfig], settings: Settings
    ) -> dict[str, Rounded]:
        """Round the layers of a block that is in memory, and go on to what it returns then."""
        every = {one.layer.name: one for one in float_layers(model, qconfigs, settings.target)}
        methods = settings.weights
        layers = {at: one for at, one in every.items() if any(m.fits(one.layer) for m in methods)}
        nothing = Checkpoint(None, "")
        told = (self.notes, self.doubts)
        work = BlockRounding(model, layers, methods, self.calls, Folds.none(), nothing, *told)
        work.round_block(self.chain, path)
        return {at: one.now for at, one in layers.items()}

    def remarks(self) -> list[str]:
        """What is to be said, a sentence each."""
        return [*self.notes, *told_of_doubts(self.doubts)]

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
        """Go on to what a block returns that was rounded before; its floats are in memory."""
        with torch.no_grad():
            for at, part in parts.items():
                own = {
                    name.removeprefix(f"{at}."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"{at}.")
                }
                layer, module = model.get_submodule(at), from_description(part["description"], own)
                for name, floats in module.dequantized().items():
                    is_turned = getattr(module, "transposed", False) and name == "weight"
                    layer.get_parameter(name).copy_(floats.t() if is_turned else floats)
        self.chain.hidden = self.chain.run(path)
        del self.chain.others[path]


def _call(batch: Any) -> Call:
    return Call(split_batch(batch, _ARGUMENTS))


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
