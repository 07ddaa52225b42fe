"""Steps of a plan that one kernel does at once: a sum within the layer or norm beside it, a
rounding within what makes the floats.

Operations plan simple steps. Which of them stand beside each other, and how their values lie, is
known only here, when sizes are.

Tested in tests/runtimes/native/test_fusing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.operations import Calculation
from octavo.runtimes.native.planning import PlannedStep, Value
from octavo.runtimes.native.rows import round_attention_to, round_to
from octavo.runtimes.native.structs import Kind, copy_of


@dataclass
class _Steps:
    """Steps, some of which are gone, with who reads and makes what."""

    steps: list[PlannedStep | None]
    kept: Set[int]

    def readers(self, buffer: int) -> list[int]:
        return self._naming(buffer, lambda step: [v.buffer for v in step.reads.values()])

    def makers(self, buffer: int) -> list[int]:
        return self._naming(buffer, lambda step: [v.buffer for v in step.makes.values()])

    def _naming(self, buffer: int, names: Callable[[PlannedStep], list[int]]) -> list[int]:
        steps = enumerate(self.steps)
        return [index for index, step in steps if step is not None and buffer in names(step)]

    def maker(self, value: Value, kind: Kind, name: str) -> int | None:
        """The step of this kind that makes all of the memory that a value is, as so named."""
        makers = self.makers(value.buffer)
        step = self.steps[makers[0]] if len(makers) == 1 else None
        if step is None or step.kind is not kind or name not in step.makes:
            return None
        return makers[0] if value.is_whole and step.makes[name].buffer == value.buffer else None

    def is_read_once(self, value: Value) -> bool:
        return value.buffer not in self.kept and len(self.readers(value.buffer)) == 1


def fused(steps: Sequence[PlannedStep], kept: Set[int]) -> list[PlannedStep]:
    """The steps with what can be done at once; the memory that ``kept`` numbers is read later."""
    found = _Steps(list(steps), kept)
    for fuse in (_sum_in_layer, _sum_in_norm, _rounding_in_norm, _rounding_in_attention):
        for index, step in enumerate(found.steps):
            if step is not None:
                fuse(found, index, step)
    return [step for step in found.steps if step is not None]


def _is_sum(step: PlannedStep) -> bool:
    if step.kind is not Kind.CALCULATE or step.arguments.operation != Calculation.SUM:
        return False
    y = step.makes["y"]
    return y.order is not None and all(x.lies_as(y) for x in step.reads.values())


def _sum_in_layer(steps: _Steps, index: int, step: PlannedStep) -> None:
    """A layer adds floats that were there before it."""
    if not _is_sum(step):
        return
    one, two = step.reads.values()
    for term, other in ((one, two), (two, one)):
        at = steps.maker(term, Kind.CONVOLVE, "y")
        if at is None or not steps.is_read_once(term):
            continue
        layer = steps.steps[at]
        assert layer is not None
        plain = layer.arguments.epilogue.activation == Activation.NONE
        if (
            plain
            and "epilogue.addend" not in layer.reads
            and max(steps.makers(other.buffer), default=-1) < at
        ):
            reads = {**layer.reads, "epilogue.addend": other}
            makes = {**layer.makes, "y": step.makes["y"]}
            steps.steps[at], steps.steps[index] = replace(layer, reads=reads, makes=makes), None
            return


def _sum_in_norm(steps: _Steps, index: int, step: PlannedStep) -> None:
    """A norm adds two tensors of floats of which nothing else reads the sum."""
    x = step.reads.get("x")
    if step.kind is not Kind.NORMALIZE or x is None or "addend" in step.reads:
        return
    at = steps.maker(x, Kind.CALCULATE, "y")
    sum_of = None if at is None else steps.steps[at]
    if at is None or sum_of is None or not _is_sum(sum_of) or not steps.is_read_once(x):
        return
    one, other = sum_of.reads.values()
    steps.steps[index] = replace(step, reads={"x": one, "addend": other})
    steps.steps[at] = None


def _rounding_in_norm(steps: _Steps, index: int, step: PlannedStep) -> None:
    """A norm rounds its result, and keeps the floats only where they are read, too."""
    at = _rounded(steps, step, Kind.NORMALIZE)
    norm = None if at is None else steps.steps[at]
    if at is None or norm is None or "rounded" in norm.makes:
        return
    arguments = copy_of(norm.arguments)
    round_to(arguments, step.arguments.out)
    makes = {**norm.makes, "rounded": step.makes["y"]}
    if steps.is_read_once(step.reads["x"]):
        del makes["out"]
    steps.steps[at], steps.steps[index] = replace(norm, arguments=arguments, makes=makes), None


def _rounding_in_attention(steps: _Steps, index: int, step: PlannedStep) -> None:
    """Attention rounds its result, where nothing reads the floats."""
    at = _rounded(steps, step, Kind.ATTEND)
    attention = None if at is None else steps.steps[at]
    if at is None or attention is None or not steps.is_read_once(step.reads["x"]):
        return
    arguments = copy_of(attention.arguments)
    round_attention_to(arguments, step.arguments.out)
    makes = {"out": step.makes["y"]}
    steps.steps[at], steps.steps[index] = replace(attention, arguments=arguments, makes=makes), None


def _rounded(steps: _Steps, step: PlannedStep, kind: Kind) -> int | None:
    """The step of this kind all of whose floats another rounds, and leaves where they are."""
    if step.kind is not Kind.QUANTIZE or not step.reads["x"].lies_as(step.makes["y"]):
        return None
    return steps.maker(step.reads["x"], kind, "out")
