"""Weight methods at work on a model without a graph: one block after the other.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from octavo.errors import CalibrationError, InputError
from octavo.flow.blockwise.blocks import Chain, chains_of, recorded
from octavo.flow.blockwise.checkpoint import Checkpoint, Digest
from octavo.flow.blockwise.measuring_inputs import FloatLayer, Measuring, float_layers
from octavo.flow.blockwise.model_folds import Folds, some, told_of_unscaled
from octavo.flow.blockwise.rescaling import rescale, rescaled_by
from octavo.flow.running import Calls
from octavo.flow.settings import Settings
from octavo.progress import track
from octavo.quantization.qconfig import QConfig
from octavo.quantization.weights import Layer, Rescaling, Rotation, Rounded, WeightMethod


@dataclass
class RoundedModules:
    """What became of layers.

    Attributes:
        rounded: path of each linear layer that a method does something to -> its integers.
        notes: what is to be said of layers to which a method did nothing, a sentence each.
    """

    rounded: dict[str, Rounded] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def round_modules(
    model: nn.Module,
    qconfigs: Mapping[str, QConfig],
    settings: Settings,
    calls: Calls | None,
) -> RoundedModules:
    """Round the weights of linear layers by methods; those of a block see inputs that the blocks
    before, which are rounded by then, make.

    Args:
        model: changed in place: weights become what their integers stand for.
        qconfigs: path of each layer that shall have integers -> how.
        settings: its target, methods and checkpoint: a folder that keeps each block that is done,
            so that the same call in another process goes on behind it.
        calls: of the model; ``None`` without data.

    Raises:
        CalibrationError: a method measures inputs, and there is no data, or a layer was not called.
        InputError: a method fits none of the layers, or comes too late, or the checkpoint is of
            another model, other methods or other data.
    """
    methods = settings.weights
    every = {one.layer.name: one for one in float_layers(model, qconfigs, settings.target)}
    layers = {path: one for path, one in every.items() if any(m.fits(one.layer) for m in methods)}
    check_methods(methods, [one.layer for one in every.values()])
    if calls is None or calls.all is None:
        return _without_data(layers, methods)
    kept = Checkpoint.of(settings.checkpoint, methods, layers)
    work = BlockRounding(model, layers, methods, calls, Folds.none(), kept)
    followed = {chain.path for chain in recorded(model, calls.first[:1], chains_of(model, layers))}
    chains = [chain for chain in chains_of(model, layers) if chain.path in followed]
    in_blocks = {at for at in layers if any(at.startswith(f"{path}.") for path in followed)}
    outside = {path: one for path, one in layers.items() if path not in in_blocks}
    digest = Digest()
    with Measuring(outside, methods) as measuring:
        if len(recorded(model, digest.reading(calls.all), chains)) < len(chains):
            raise CalibrationError(
                "a batch goes through the blocks of the model otherwise than the first one does: "
                "give batches that are alike"
            )
    work.kept = kept.of_data(digest)
    if any(isinstance(method, Rescaling) for method in methods):
        work.folds = Folds.of(model, calls.first[0], chains, layers, settings.progress)
    blocks = [(chain, path) for chain in chains for path in chain.blocks]
    for chain, path in track(blocks, "rounding", settings.progress):
        work.round_block(chain, path)
    work.round(outside, measuring)
    return RoundedModules({path: one.now for path, one in layers.items()}, work.remarks())


def check_methods(methods: Sequence[WeightMethod], layers: Sequence[Layer]) -> None:
    """Raise for a method that does nothing, or comes too late.

    Raises:
        InputError: one is so.
    """
    for method in methods:
        if not any(method.fits(layer) for layer in layers):
            runs = " and ".join(sorted({layer.runs for layer in layers}))
            otherwise = (
                "give another mode, or a layer that it is for"
                if isinstance(method, Rescaling)
                else 'quantize a graph (scope="model")'
            )
            raise InputError(
                f"weights= has {method.name!r}, which does nothing to any {runs or 'linear'} layer "
                f"here: leave it out, or {otherwise}"
            )
    late = [n for n, method in enumerate(methods) if isinstance(method, Rescaling)]
    if late != list(range(len(late))):
        raise InputError(
            f"weights= has {methods[late[-1]].name!r} behind a method that rounds, of which it "
            "would leave nothing: give it first"
        )


def round_without_data(
    model: nn.Module, qconfigs: Mapping[str, QConfig], settings: Settings
) -> RoundedModules:
    """Round the weights of linear layers by methods that measure no inputs, see `round_modules`.

    Raises:
        CalibrationError: one does.
    """
    methods, every = settings.weights, float_layers(model, qconfigs, settings.target)
    layers = {one.layer.name: one for one in every if any(m.fits(one.layer) for m in methods)}
    return _without_data(layers, methods)


def require_no_data(layers: Iterable[Layer], methods: Sequence[WeightMethod]) -> None:
    """Raise for methods that measure the inputs of layers.

    Raises:
        CalibrationError: there is one.
    """
    turns = any(isinstance(method, Rotation) for method in methods)  # which is tried on data
    if turns or any(
        m.fits(layer) and m.statistic(layer) is not None for layer in layers for m in methods
    ):
        raise CalibrationError(
            f"{', '.join(repr(m.name) for m in methods)}: inputs of layers are measured, and "
            "there is no data: give calibration=, an iterable of batches"
        )


def _without_data(
    layers: Mapping[str, FloatLayer], methods: Sequence[WeightMethod]
) -> RoundedModules:
    require_no_data((one.layer for one in layers.values()), methods)
    for one in layers.values():
        one.round(methods, {})
    return RoundedModules({path: one.now for path, one in layers.items()})


def told_of_doubts(doubts: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """A sentence for each method and reason; layers that have them in common are named together."""
    return [f"{name}: of {some(at)} {why}" for (name, why), at in doubts.items()]


@dataclass
class BlockRounding:
    """What is done to the layers of a model, a block at a time."""

    model: nn.Module
    layers: Mapping[str, FloatLayer]
    methods: Sequence[WeightMethod]
    calls: Calls
    folds: Folds
    kept: Checkpoint
    notes: list[str] = field(default_factory=list)
    doubts: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What is to be said, a sentence each."""
        unscaled: dict[str, list[str]] = {}
        for method, at in self.folds.unscaled(self.methods, self.layers):
            unscaled.setdefault(method, []).append(at)
        return [*told_of_unscaled(unscaled), *self.notes, *told_of_doubts(self.doubts)]

    def round_block(self, chain: Chain, path: str) -> None:
        """Round the layers of one block, and go on to what it returns then."""
        inside = {at: one for at, one in self.layers.items() if at.startswith(f"{path}.")}
        folds = self.folds.by_block.get(path, [])
        scales = self.kept.read(path, inside)
        if scales is None:
            with Measuring(inside, self.methods) as measuring:
                chain.run(path)
            scales = self.round(inside, measuring, path)
            self.kept.write(path, inside, scales)
        else:
            rescaled_by(folds, scales)
        for one in inside.values():
            one.write_back()
        chain.hidden = chain.run(path)
        del chain.others[path]

    def round(
        self, layers: Mapping[str, FloatLayer], measuring: Measuring, path: str = ""
    ) -> dict[str, Tensor]:
        """Scale and round some layers of which the inputs were measured.

        Returns:
            The scales, by the first layer of each input that has some.
        """
        measured = {at: measuring.of(at) for at in layers}
        reached = {
            at: one for at, one in layers.items() if not (one.is_expert and not measured[at])
        }
        if len(reached) < len(layers) and any(o.statistics(self.methods) for o in layers.values()):
            missed = [at for at in layers if at not in reached]
            self.notes.append(
                f"no row of the data is routed to {some(missed)}: their weights were rounded to "
                "nearest"
            )
        for at, one in reached.items():
            one.check_measured(self.methods, measured[at])
        scales = {}
        if folds := self.folds.by_block.get(path, []):
            scales = rescale(folds, self.methods, layers, measured)
        for at, one in reached.items():
            for name, why in one.doubts(self.methods, measured[at]):
                self.doubts.setdefault((name, why), []).append(at)
            one.round(self.methods, measured[at])
        return scales
