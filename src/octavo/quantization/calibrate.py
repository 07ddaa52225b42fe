"""Calibration: run the float graph over the data and observe the tensors that will be quantized.

Batches stream through; what is kept is one observer state per tensor, whose size does not depend
on the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import FUNCTION, expect, optional
from octavo.errors import CalibrationError, OctavoError, first_line
from octavo.graph.batches import NO_BATCH, SIGNATURE, Signature, iterated, split_batch
from octavo.graph.calls import flatten_call, range_of
from octavo.graph.channels_last import channels_last, with_weights_last
from octavo.graph.graph import GRAPH, Graph, Ref
from octavo.graph.program import Step, compile_steps, steps_of
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.numerics.affine import QParams, qparams_of_range
from octavo.numerics.observers import Bounds
from octavo.progress import track
from octavo.quantization.nonfinite_inputs import masks_of
from octavo.quantization.plan import PLAN, Plan, TensorPlan
from octavo.quantization.targets import ROLES, SHARED
from octavo.quantization.weights import (
    METHODS,
    BiasCorrection,
    Measured,
    Statistic,
    WeightMethod,
    input_means,
    measured,
    qparams_of_weight,
)


@dataclass(frozen=True)
class Calibrated:
    """What calibration found.

    Attributes:
        qparams: scale and zero point of every quantized tensor, by name.
        input_means: layer with a weight -> mean of each input channel, float32 ``[in]``; where
            ranges are found on data, or `BiasCorrection` was asked for.
        batches: how many were seen.
        seen: input of the model -> the least and the largest value in all batches.
        bounds: the ranges behind the qparams, of every activation that has one of its own.
        statistics: what weight methods wanted to know of a tensor, by its name and the statistic.

    Example:
        >>> graph = octavo.capture(model, images)
        >>> found = octavo.calibrate(graph, octavo.plan(graph), loader)
        >>> found.batches, found.qparams["conv1.weight"].scale.shape
        (4, torch.Size([8]))
    """

    qparams: Mapping[str, QParams]
    input_means: Mapping[str, Tensor]
    batches: int
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    statistics: Mapping[Measured, Any] = field(default_factory=dict)


class Calibration:
    """The observers of a plan at work on a graph; feed it batches, then read the parameters.

    Args:
        graph: the canonical float graph that ``plan`` was made for.
        plan: what to observe.
        weights: methods whose statistics are measured too, beside those of `BiasCorrection`, which
            are where data are needed anyway.
        known: statistics that were measured on the same batches already; they are not again.

    Raises:
        CalibrationError: a constant of the graph has a NaN or an infinity in it.

    Example:
        >>> from torch import nn, rand
        >>> import octavo
        >>> graph = octavo.capture(nn.Linear(4, 4), rand(2, 4))
        >>> calibration = Calibration(graph, octavo.plan(graph))
        >>> calibration.observe([rand(8, 4)])
        >>> calibration.batches
        1
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        weights: Sequence[WeightMethod] = (),
        known: Mapping[Measured, Any] | None = None,
    ) -> None:
        expect(GRAPH, graph=graph)
        expect(PLAN, plan=plan)
        expect(METHODS, weights=weights)
        check_constants(graph)
        self.graph = graph
        self.plan = plan
        self.batches = 0
        self.states: dict[str, Any] = {}
        self.weights = tuple(weights)
        self.statistics: dict[Measured, Any] = dict(known or {})
        self.seen: dict[str, tuple[float, float]] = {}
        wanted = measured(graph, plan, (*_by_default(plan), *weights))
        self._measured = [one for one in wanted if one not in self.statistics]
        self._masks = masks_of(graph)
        self._device = graph.device
        self._run = compile_steps(
            graph.input_names(),
            list(_with_taps(graph, self._device, self._taps())),
            [],
            with_weights_last(graph).constants,
        )
        self._leaders = {name: _leader(plan, t) for name, t in plan.quantized.items()}

    def observe(self, tensors: list[Tensor]) -> None:
        """Observe one batch, given as the graph's input tensors in order.

        Raises:
            CalibrationError: an input is empty, or has a NaN or an infinity in it.
        """
        check_batch(self.graph, tensors, self._masks)
        for entry, tensor in zip(self.graph.inputs, tensors, strict=True):
            self._widen(entry.name, range_of(tensor))
        with torch.no_grad():
            self._run(*(channels_last(tensor.to(self._device)) for tensor in tensors))
        self.batches += 1

    def merge(self, other: Calibration) -> None:
        """Take in what another calibration of the same plan (another shard) has seen."""
        self._take_in(other.states, other.statistics, other.seen, other.batches)

    def _widen(self, name: str, bounds: tuple[float, float] | None) -> None:
        if bounds is not None:
            low, high = self.seen.get(name, bounds)
            self.seen[name] = min(low, bounds[0]), max(high, bounds[1])

    def _take_in(
        self,
        states: Mapping[str, Any],
        statistics: Mapping[Measured, Any],
        seen: Mapping[str, tuple[float, float]],
        batches: int,
    ) -> None:
        for name, bounds in seen.items():
            self._widen(name, bounds)
        for name, state in states.items():
            spec = self.plan.tensors[name].spec
            if spec is not None and spec.observer is not None and name in self.states:
                state = spec.observer.merge(self.states[name], state)
            self.states[name] = state
        for key, state in statistics.items():
            known = key in self.statistics
            self.statistics[key] = key[1].merge(self.statistics[key], state) if known else state
        self.batches += batches

    def result(self) -> Calibrated:
        """All that was found.

        Raises:
            CalibrationError: no batch was observed, or a tensor's range is not finite.
        """
        bounds = self.bounds()
        qparams = self._qparams(bounds)
        means = input_means(self.graph, self.plan, self.statistics)
        return Calibrated(qparams, means, self.batches, self.seen, bounds, self.statistics)

    @property
    def needs_data(self) -> bool:
        """Whether there is anything to observe: a range, or what a weight method wants to know."""
        return self.plan.needs_calibration or bool(self._measured)

    def bounds(self) -> dict[str, Bounds]:
        """The range of every quantized activation that has one of its own, by name.

        Raises:
            CalibrationError: no batch was observed.
        """
        if self.batches == 0 and self.needs_data:
            raise CalibrationError(NO_BATCH)
        bounds = {}
        for name, tensor in self.plan.quantized.items():
            if tensor.kind != "weight" and tensor.shares is None:
                assert tensor.spec is not None and tensor.spec.observer is not None
                with _named(name, tensor.op):
                    bounds[name] = tensor.spec.observer.bounds(
                        self.states[name], tensor.spec.scheme
                    )
        return bounds

    def qparams(self) -> dict[str, QParams]:
        """Scale and zero point of every quantized tensor of the plan, by name.

        Raises:
            CalibrationError: no batch was observed, or a tensor's range is not finite.
        """
        return self._qparams(self.bounds())

    def _qparams(self, bounds: Mapping[str, Bounds]) -> dict[str, QParams]:
        qparams = {}
        for name, bound in bounds.items():
            tensor = self.plan.tensors[name]
            assert tensor.spec is not None
            with _named(name, tensor.op):
                qparams[name] = qparams_of_range(bound.low, bound.high, tensor.spec.scheme)
        for name, tensor in self.plan.quantized.items():
            if tensor.kind == "weight":
                assert tensor.spec is not None
                with _named(name, tensor.op):
                    qparams[name] = qparams_of_weight(self.graph.constants[name], tensor.spec)
        return {name: qparams[self._leaders[name]] for name in self.plan.quantized}

    def _taps(self) -> dict[str, Callable[[Tensor], None]]:
        """For each tensor to look at, what to call with its value.

        Of tensors that share a scale, those that only move another's integers add nothing to see.
        """
        moved = {n.name for n in self.graph.nodes if ROLES.get(n.short_op) == SHARED}
        observing = {
            name: self._observe_range(tensor)
            for name, tensor in self.plan.quantized.items()
            if tensor.kind != "weight" and not (tensor.shares is not None and name in moved)
        }
        taps: dict[str, list[Callable[[Tensor], None]]] = {n: [tap] for n, tap in observing.items()}
        for name, statistic in self._measured:
            taps.setdefault(name, []).append(self._observe_statistic(name, statistic))
        return {name: _in_turn(calls) for name, calls in taps.items()}

    def _observe_range(self, tensor: TensorPlan) -> Callable[[Tensor], None]:
        leader = _leader(self.plan, tensor)
        spec = self.plan.tensors[leader].spec
        assert spec is not None and spec.observer is not None
        update, axis, states = spec.observer.update, spec.scheme.channel_axis, self.states

        def tap(value: Tensor) -> None:
            with _named(tensor.tensor, tensor.op):
                states[leader] = update(states.get(leader), value, axis)

        return tap

    def _observe_statistic(self, name: str, statistic: Statistic) -> Callable[[Tensor], None]:
        states, key = self.statistics, (name, statistic)

        def tap(value: Tensor) -> None:
            states[key] = statistic.update(states.get(key), value)

        return tap


def calibrate(
    graph: Graph,
    plan: Plan,
    data: Iterable[Any] | None = None,
    *,
    weights: Sequence[WeightMethod] = (),
    signature: Signature | None = None,
    inputs: Callable[[Any], Any] | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> Calibrated:
    """Run ``data`` through the float graph.

    Args:
        graph: the canonical float graph.
        plan: from `octavo.plan`.
        data: any iterable of batches, see `octavo.graph.batches.split_batch`. It is not read where
            nothing has to be observed: only weights are quantized, to the nearest integers.
        weights: methods whose statistics are measured too, see `octavo.quantize`.
        signature: the argument names of the model's ``forward``; the graph's without it.
        inputs: maps a batch to the model's arguments.
        distributed: in ``torchrun``: each process has a part of the data, and all of them get what
            all together have seen.
        progress: show a progress bar on a terminal.

    Returns:
        Scale and zero point of every quantized tensor, and what else was measured.

    Raises:
        CalibrationError: no batches, or one that does not fit the model; it names the batch.
        InputError: an argument is of another kind.

    Example:
        >>> graph = octavo.capture(model, images)
        >>> found = octavo.calibrate(graph, octavo.plan(graph), loader)
        >>> [round(end) for end in found.seen["input"]]  # least and largest value of the images
        [0, 1]
    """
    expect(GRAPH, graph=graph)
    optional(FUNCTION, inputs=inputs)
    optional(SIGNATURE, signature=signature)
    signature = signature or Signature(tuple(graph.arguments), len(graph.arguments))
    calibration = Calibration(graph, plan, weights)
    if not calibration.needs_data:
        return calibration.result()
    if data is None:
        raise CalibrationError(NO_CALIBRATION if plan.needs_calibration else _NO_STATISTICS)
    with stopping_together() if distributed else nullcontext():
        for index, batch in enumerate(track(iterated(data), "calibrating", progress)):
            try:
                call = split_batch(batch, signature, inputs)
                calibration.observe(flatten_call(graph, call.args, call.kwargs))
            except OctavoError as error:
                raise CalibrationError(f"calibration batch {index}: {error}") from error
    return (of_all_processes(calibration) if distributed else calibration).result()


NO_CALIBRATION = (
    "static quantization needs calibration data: pass calibration=loader, an iterable of "
    'about 100 representative batches; or mode="dynamic" or "weight_only", which need none'
)
_NO_STATISTICS = (
    "the weight methods need calibration data, to see what layers read: pass calibration=loader, "
    "an iterable of about 100 representative batches"
)


def of_all_processes(calibration: Calibration) -> Calibration:
    """What the processes of ``torch.distributed`` have seen together; the same in each of them.

    Raises:
        CalibrationError: there is no process group.
    """
    mine = (calibration.states, calibration.statistics, calibration.seen, calibration.batches)
    merged = Calibration(calibration.graph, calibration.plan, calibration.weights)
    for each in gathered(mine):
        merged._take_in(*each)
    return merged


@contextmanager
def stopping_together() -> Iterator[None]:
    """What fails inside in one process of ``torch.distributed`` fails in all of them: else the
    others would wait for it, at the next thing that they do together, until they are killed.

    Raises:
        CalibrationError: another process failed, or there is no process group.
    """
    try:
        yield
    except Exception as error:
        gathered(first_line(error))
        raise
    problems = {rank: problem for rank, problem in enumerate(gathered("")) if problem}
    for rank, problem in problems.items():
        raise CalibrationError(f"process {rank} could not calibrate: {problem}")


def gathered(mine: Any) -> list[Any]:
    """What each process of ``torch.distributed`` has, in their order; the same list in each.

    Raises:
        CalibrationError: there is no process group.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise CalibrationError(
            "distributed=True needs a process group: start the script with torchrun, and call "
            "torch.distributed.init_process_group() before"
        )
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    return every


def _with_taps(
    graph: Graph, device: torch.device, taps: dict[str, Callable[[Tensor], None]]
) -> Iterator[Step]:
    for entry in graph.inputs:
        if entry.name in taps:
            yield Step(f"{entry.name} seen", taps[entry.name], (Ref(entry.name),))
    for step in steps_of(graph, device):
        yield step
        if step.out in taps:
            yield Step(f"{step.out} seen", taps[step.out], (Ref(step.out),))


@contextmanager
def _named(name: str, op: str) -> Iterator[None]:
    """Errors inside say which tensor they are about."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"tensor {name!r} ({op}): {error}") from None


def _in_turn(calls: list[Callable[[Tensor], None]]) -> Callable[[Tensor], None]:
    def tap(value: Tensor) -> None:
        for call in calls:
            call(value)

    return tap


def _by_default(plan: Plan) -> tuple[WeightMethod, ...]:
    """The methods whose statistics are measured unasked."""
    return (BiasCorrection(),) if plan.needs_calibration else ()


def _leader(plan: Plan, tensor: TensorPlan) -> str:
    return tensor.tensor if tensor.shares is None else tensor.shares


def check_constants(graph: Graph) -> None:
    """Look at the weights, biases and other constants of a float graph.

    Infinities may be meant in a constant that is not a layer's own, such as a mask.

    Raises:
        CalibrationError: one has NaN in it, or a weight or bias has an infinity.
    """
    layers = [node for node in graph.nodes if node.short_op in WEIGHT_LAYOUTS]
    own = {name for node in layers for name in node.refs()}
    for name, tensor in graph.constants.items():
        # A sum of finite values may overflow: only then every value is looked at.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        nan, infinite = bool(tensor.isnan().any()), bool(tensor.isinf().any())
        if nan or (infinite and name in own):
            raise CalibrationError(
                f"{name!r} of the model has {'NaN' if nan else 'an infinity'} in it: the training "
                "went wrong, or a checkpoint is damaged; quantize sound weights"
            )


def check_batch(graph: Graph, tensors: Sequence[Tensor], masks: Collection[str]) -> None:
    """Look at one batch, given as the graph's input tensors in order.

    Args:
        graph: what they are for.
        tensors: in the order of its inputs.
        masks: those of its inputs that are masks, in which minus infinity hides a score.

    Raises:
        CalibrationError: an input is empty, or has a NaN or an infinity in it.
    """
    for entry, tensor in zip(graph.inputs, tensors, strict=True):
        _check_values(entry.name, tensor, entry.name in masks)


def _check_values(name: str, tensor: Tensor, is_mask: bool) -> None:
    if tensor.numel() == 0:
        raise CalibrationError(f"input {name!r} is empty: its shape is {list(tensor.shape)}")
    if not tensor.is_floating_point():
        return
    extrema = torch.stack(torch.aminmax(tensor))  # NaN and infinities both show, in one quick pass
    if is_mask:
        extrema = extrema[1:]  # minus infinity hides a score
    if not bool(torch.isfinite(extrema).all()):
        kind = "NaN" if bool(torch.isnan(extrema).any()) else "an infinity"
        raise CalibrationError(f"input {name!r} has {kind} in it; clean the data or leave it out")
