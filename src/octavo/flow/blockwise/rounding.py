"""Weight methods at work on a model without a graph: one block after the other.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from octavo.display import track
from octavo.errors import CalibrationError, InputError
from octavo.flow.blockwise.blocks import Chain, chains_of, recorded
from octavo.flow.blockwise.checkpoint import Checkpoint
from octavo.flow.blockwise.measuring_inputs import FloatLayer, Measuring
from octavo.flow.running import Calls
from octavo.flow.settings import Settings
from octavo.graph.graph import Node
from octavo.model.nn import quantized_form
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear
from octavo.numerics.affine import quantized
from octavo.quantization.qconfig import QConfig
from octavo.quantization.weights import Layer, Rounded, WeightMethod, qparams_of_weight


def round_modules(
    model: nn.Module,
    qconfigs: Mapping[str, QConfig],
    settings: Settings,
    calls: Calls | None,
) -> dict[str, Rounded]:
    """Round the weights of linear layers by methods; those of a block see inputs that the blocks
    before, which are rounded by then, make.

    Args:
        model: changed in place: weights become what their integers stand for.
        qconfigs: path of each layer that shall have integers -> how.
        settings: its target, methods and checkpoint: a folder that keeps each block that is done,
            so that the same call in another process goes on behind it.
        calls: of the model; ``None`` without data.

    Returns:
        Path of each linear layer that a method does something to -> its integers.

    Raises:
        CalibrationError: a method measures inputs, and there is no data, or a layer was not called.
        InputError: a method fits none of the layers, or the checkpoint is of another model, or of
            other methods.
    """
    methods = settings.weights
    layers = _layers(model, qconfigs, settings.target, methods)
    for method in methods:
        if not any(method.fits(one.layer) for one in layers.values()):
            raise InputError(
                f"weights= has {method.name!r}, which does nothing to any layer here: leave it "
                'out, or quantize a graph (scope="model")'
            )
    if calls is None or calls.all is None:
        if any(one.statistics(methods) for one in layers.values()):
            raise CalibrationError(
                f"{', '.join(repr(m.name) for m in methods)}: inputs of layers are measured, and "
                "there is no data: give calibration=, an iterable of batches"
            )
        for one in layers.values():
            one.round(methods, {})
        return {path: one.now for path, one in layers.items()}
    kept = Checkpoint.of(settings.checkpoint, methods, layers)
    followed = {chain.path for chain in recorded(model, calls.first[:1], chains_of(model, layers))}
    chains = [chain for chain in chains_of(model, layers) if chain.path in followed]
    in_blocks = {at for at in layers if any(at.startswith(f"{path}.") for path in followed)}
    outside = {path: one for path, one in layers.items() if path not in in_blocks}
    with Measuring(outside, methods) as measuring:
        if len(recorded(model, calls.all, chains)) < len(chains):
            raise CalibrationError(
                "a batch goes through the blocks of the model otherwise than the first one does: "
                "give batches that are alike"
            )
    blocks = [(chain, path) for chain in chains for path in chain.blocks]
    for chain, path in track(blocks, "rounding", settings.progress):
        _round_block(chain, path, layers, methods, kept)
    for path, one in outside.items():
        one.round(methods, measuring.of(path))
    return {path: one.now for path, one in layers.items()}


def _layers(
    model: nn.Module, qconfigs: Mapping[str, QConfig], target: str, methods: Sequence[WeightMethod]
) -> dict[str, FloatLayer]:
    layers: dict[str, FloatLayer] = {}
    for path, module in model.named_modules():
        if path not in qconfigs or quantized_form(module) is not Linear:
            continue
        spec, activation = Linear.specs(module, qconfigs[path], target)
        tensors = tensors_of(module)
        weight, bias = tensors["weight"].detach().float(), tensors.get("bias")
        layer = Layer(
            node=Node(path, "aten.linear.default"),
            runs="weight_only" if activation is None else "dynamic",
            weight_name=f"{path}.weight",
            weight=weight,
            scheme=spec.scheme,
            input=path,
            bias=None if bias is None else bias.detach().float(),
            takes_bias=True,
        )
        if any(method.fits(layer) for method in methods):
            qparams = qparams_of_weight(weight, spec)
            layers[path] = FloatLayer(module, layer, Rounded(quantized(weight, qparams), qparams))
    return layers


def _round_block(
    chain: Chain,
    path: str,
    layers: Mapping[str, FloatLayer],
    methods: Sequence[WeightMethod],
    kept: Checkpoint,
) -> None:
    """Round the layers of one block, and go on to what it returns then."""
    inside = {at: one for at, one in layers.items() if at.startswith(f"{path}.")}
    if not kept.read(path, inside):
        with Measuring(inside, methods) as measuring:
            chain.run(path)
        for at, one in inside.items():
            one.round(methods, measuring.of(at))
        kept.write(path, inside)
    for one in inside.values():
        one.write_back()
    chain.hidden = chain.run(path)
    del chain.others[path]
