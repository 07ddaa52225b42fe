"""`prepare_qat`: from a float model to one that trains with rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import called_rightly
from octavo.errors import CalibrationError, PlanError, TrainingError
from octavo.graph.batches import Signature, example_call
from octavo.graph.calls import flatten_call, with_seen
from octavo.graph.capture.capture import traced
from octavo.graph.capture.example import module_of
from octavo.graph.graph import Graph
from octavo.graph.losses import signature_with_losses
from octavo.graph.open_sizes import OpenSizes
from octavo.graph.passes import products_by_one_name
from octavo.numerics.affine import qparams_of_range
from octavo.numerics.observers import Bounds, FixedRange
from octavo.qat.fake_quantize import (
    FakeQuantize,
    LearnedFakeQuantize,
    ObservedFakeQuantize,
    WeightFakeQuantize,
    learned_start,
)
from octavo.qat.model import Held, QATModel
from octavo.qat.training_graph import TrainingGraph
from octavo.quantization.calibrate import calibrate
from octavo.quantization.plan import Plan, plan
from octavo.quantization.qconfig import QConfig, QConfigMapping, QSpec, mapping_of, mode_of
from octavo.quantization.targets import qat_qconfig


@called_rightly()
def prepare_qat(
    model: nn.Module,
    example_inputs: Any = None,
    qconfig: QConfig | QConfigMapping | None = None,
    *,
    target: str = "x86",
    mode: str | None = None,
    calibration: Iterable[Any] | None = None,
    learned_scales: bool = False,
    inputs: Callable[[Any], Any] | None = None,
    open_sizes: OpenSizes | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> QATModel:
    """A copy of a model that trains with the rounding that it will meet.

    Train it in any loop, then `octavo.convert` it. See `octavo.qat.Schedule` for when to stop
    observing ranges and to freeze batch norms.

    Args:
        model: any ``nn.Module`` that ``torch.export`` takes. It is left as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments to capture the
            model with; the first calibration batch without it.
        qconfig: one `QConfig` for all layers, or a `QConfigMapping`; `octavo.qat_qconfig` of the
            target without.
        target: where the model will run, see `octavo.quantization.targets`.
        mode: what layers are where ``qconfig`` says nothing else: ``"static"``, ``"dynamic"`` or
            ``"weight_only"``. Without it what ``qconfig`` is, else static.
        calibration: batches to find the first ranges on. Without it they begin with what the first
            training batch shows.
        learned_scales: train the scales too (LSQ, arXiv:1902.08153). They start from calibration.
        inputs: maps a calibration batch to the model's arguments.
        open_sizes: sizes that have to be open, with their names, as for `octavo.quantize`.
        distributed: in ``torchrun``, calibrate on what all processes together see.
        progress: show a progress bar on a terminal.

    Returns:
        The model in training mode. Its parameters are copies under the float model's names; one
        that was frozen stays so.

    Raises:
        CaptureError: the model cannot be exported.
        PlanError: the qconfig does not fit the model, or one of its observers cannot follow a
            training.
        CalibrationError: the data does not fit, or learned scales have none to start from.
        TrainingError: no parameter is to be trained.
        InputError: the model fixes a size that has to be open.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> float_model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> qat = prepare_qat(float_model, torch.rand(2, 3, 8, 8))
        >>> optimizer = torch.optim.SGD(qat.parameters(), 0.01)
        >>> qat(torch.rand(4, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> octavo.convert(qat)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 8, 6, 6])
    """
    if isinstance(model, QATModel):
        raise PlanError("the model is prepared already: train it, or prepare the float model again")
    model = module_of(model)
    signature = Signature.of(model)
    example, calibration = example_call(example_inputs, calibration, signature, inputs)
    example = example.beside(model)
    graph = products_by_one_name(
        traced(model, example.args, example.kwargs, open_sizes=open_sizes, progress=progress)
    )
    signature = signature_with_losses(model, graph, example)
    graph = with_seen(graph, flatten_call(graph, example.args, example.kwargs))
    trainable = _trainable(model, graph)
    trained = TrainingGraph.of(graph, trainable)
    deployed = trained.deployed()
    decided = _plan(deployed, qconfig, target, mode)
    bounds: Mapping[str, Bounds] = {}
    if calibration is not None and decided.needs_calibration:
        bounds = calibrate(
            deployed,
            decided,
            calibration,
            signature=signature,
            inputs=inputs,
            distributed=distributed,
            progress=progress,
        ).bounds
    elif learned_scales and decided.needs_calibration:
        raise CalibrationError(
            "learned scales start from what calibration finds: pass calibration=loader, an "
            "iterable of some representative batches"
        )
    make = _learned if learned_scales else _observed
    modules = [make(*tensor, deployed, bounds) for tensor in _with_ranges(decided)]
    held = _held(model, trainable, graph, trained.graph)
    if not any(how.trainable for how in held.values()):
        raise TrainingError(
            "all parameters are frozen (requires_grad is False), so that there is nothing to "
            "train: unfreeze some, or use octavo.quantize"
        )
    return QATModel(trained, decided, signature, held, modules).to(graph.device).train()


def _plan(
    graph: Graph, qconfig: QConfig | QConfigMapping | None, target: str, mode: str | None
) -> Plan:
    """The plan, where the default observer is one that can follow a training."""
    if mode is None:
        mode = mode_of(qconfig, "static")
    asked = mapping_of(qconfig)
    mapping = QConfigMapping(list(asked.rules) if asked else [])
    if mode == "static" and not any(rule.kind == "global" for rule in mapping.rules):
        mapping.set_global(qat_qconfig(target))
    return plan(graph, mapping, target, mode)


def _with_ranges(plan: Plan) -> Iterator[tuple[str, QSpec, str]]:
    """Name, spec and kind of the quantized tensors that have a range of their own."""
    for name, tensor in plan.quantized.items():
        if tensor.kind == "weight" or tensor.shares is None:
            assert tensor.spec is not None
            yield name, tensor.spec, tensor.kind


def _observed(
    name: str, spec: QSpec, kind: str, graph: Graph, bounds: Mapping[str, Bounds]
) -> FakeQuantize:
    if kind == "weight":
        return WeightFakeQuantize(name, spec)
    return ObservedFakeQuantize(name, spec, bounds.get(name))


def _learned(
    name: str, spec: QSpec, kind: str, graph: Graph, bounds: Mapping[str, Bounds]
) -> FakeQuantize:
    """A fixed range stays as it is; so do weights whose zero point follows their range."""
    if isinstance(spec.observer, FixedRange) or (kind == "weight" and not spec.scheme.symmetric):
        return _observed(name, spec, kind, graph, bounds)
    if spec.scheme.power_of_two:
        raise PlanError(
            f"tensor {name!r} has a power-of-two scale, which cannot be learned: leave out "
            "learned_scales, or power_of_two"
        )
    if kind == "weight":
        return LearnedFakeQuantize(name, learned_start(graph.constants[name], spec.scheme))
    bound = bounds[name]
    return LearnedFakeQuantize(name, qparams_of_range(bound.low, bound.high, spec.scheme))


def _held(
    model: nn.Module, trainable: Mapping[str, bool], traced: Graph, trained: Graph
) -> dict[str, Held]:
    """How each constant of the training graph is held."""
    first: dict[int, str] = {}
    tied = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    masks = _masks(traced, trainable, trained)
    holders = {}
    for name, tensor in trained.constants.items():
        source = name.removesuffix(".transposed") if name not in trainable else name
        if source not in trainable or not tensor.is_floating_point():
            holders[name] = Held(name)
            continue
        # A product with a parameter is a linear layer in the graph, of the transposed parameter.
        own = traced.constants.get(source)
        flipped = own is not None and own.data_ptr() != tensor.data_ptr()
        holders[name] = Held(source, trainable[source], tied.get(source), flipped, masks.get(name))
    return holders


def _masks(traced: Graph, trainable: Mapping[str, bool], trained: Graph) -> dict[str, Tensor]:
    """Where weights that are computed of parameters may be anything but zero: what was pruned, or
    what an autoregressive layer may not see, is not to come back. It is zero whatever the
    parameters are, which two other values of theirs tell.
    """
    made = [name for name in trained.constants if name not in traced.constants]
    zeros = {name: trained.constants[name] == 0 for name in made}
    read = [
        name for name in trainable if name in traced.constants and name not in trained.constants
    ]
    if not read or not any(zero.any() for zero in zeros.values()):
        return {}
    chance = torch.Generator().manual_seed(0)
    drawn = {n: 1 + torch.rand(traced.constants[n].shape, generator=chance) for n in read}
    for sign in (1, -1):
        other = {n: (sign * value).to(traced.constants[n]) for n, value in drawn.items()}
        graph = replace(traced, constants={**traced.constants, **other})
        constants = TrainingGraph.of(graph, trainable).graph.constants
        zeros = {n: zero & (constants[n] == 0) for n, zero in zeros.items() if n in constants}
    return {name: ~zero for name, zero in zeros.items() if zero.any()}


def _trainable(model: nn.Module, traced: Graph) -> dict[str, bool]:
    """The parameters of the graph, and whether each is to be trained.

    What is computed of parameters alone (a normalized weight, a slice of positions) is one too.
    """
    own = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
    known = {name: own[name] for name in traced.constants if name in own}
    fixed = set(traced.constants)
    for node in traced.nodes:
        sources = list(node.refs())
        if sources and fixed.issuperset(sources):
            fixed.add(node.name)
            flags = [known[name] for name in sources if name in known]
            if flags:
                known[node.name] = any(flags)
    return known
