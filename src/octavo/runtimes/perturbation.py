"""The oracle with small changes: what another right runtime might compute.

Sums of floats have an order, and a value that lies between two integers goes to either. So the
integers of such values and some others are moved by a step, and results in float by their error.
How far that takes the model's results from the oracle's is how far a right runtime may be from
them.

Tested in tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import Step, compile_steps, step_of
from octavo.graph.qdq import DYNAMIC, QUANTIZE
from octavo.quantization.targets import COMPUTED, PRODUCT, ROLES, WEIGHTED
from octavo.runtimes.lowered import Lowered

# Of a layer's integers, right runtimes have up to one in ten thousand a step off; here twice that.
SHARE = 2e-4
AT_LEAST = 2
# Of a step: nearer to halves than that is what a product with 1 / scale puts on the other side.
TIE = 2.0**-15

_GETITEM = "python.getitem"
_SEQUENCES = frozenset(f"aten.{name}.input" for name in "lstm gru rnn_tanh rnn_relu".split())
_ERROR_OF_BFLOAT16 = 2.0**-8


def perturbed(
    graph: Graph, lowered: Lowered, device: torch.device, seed: int, *, halves: bool = False
) -> Callable[..., Any]:
    """A function from the graph's inputs to its flat results, slightly off.

    Args:
        graph: a quantized graph.
        lowered: what a runtime made of it; how its kernels round is taken into account.
        device: where it runs.
        seed: of what is moved.
        halves: move all that lies between two integers, too; it takes longer.
    """
    generator = torch.Generator(device).manual_seed(seed)
    # Layers with several results, which are told apart by index.
    several = {node.name: node.short_op for node in graph.nodes if node.meta is None}
    rounded = _rounded(graph)
    steps: list[Step] = []
    for node in graph.nodes:
        step = step_of(node, device)
        args = step.args
        share = lowered.rounds.get(node.name, 0.0)
        if share:
            read = next(arg for arg in args if isinstance(arg, Ref))
            steps.append(Step(f"{node.name}.read", _Rounded(generator, share), (read,)))
            args = [Ref(f"{node.name}.read") if arg is read else arg for arg in args]
            if node.op in _SEQUENCES:
                step = replace(step, function=_StatesRounded(step.function, generator, share))
        change = _change_of(node, several, lowered, generator, halves)
        if node.name in rounded:
            change = None
        exact = node.name if change is None else f"{node.name}.exact"
        steps.append(Step(exact, step.function, args, step.kwargs))
        if change is not None:
            also = node.args[:1] if isinstance(change, _Moved) else ()
            steps.append(Step(node.name, change, (Ref(exact), *also)))
    inputs = graph.input_names()
    return compile_steps(inputs, steps, graph.output_names(), graph.constants)


def _rounded(graph: Graph) -> set[str]:
    """Float values that come to integers before anything else than a sum or a function reads them:
    what is inexact about them is moved there.
    """
    names: set[str] = set()
    for node in reversed(graph.nodes):
        readers = graph.users[node.name]
        if readers and node.name not in graph.leaving and node.op != QUANTIZE:
            inner = (r.op == QUANTIZE or (_is_computed(r) and r.name in names) for r in readers)
            if all(inner):
                names.add(node.name)
    return names


def _is_computed(node: Node) -> bool:
    return ROLES.get(node.short_op) == COMPUTED


def _change_of(
    node: Node,
    several: Mapping[str, str],
    lowered: Lowered,
    generator: torch.Generator,
    halves: bool,
) -> Callable[..., Tensor] | None:
    """What becomes of a node's result; ``None`` where all runtimes have the same."""
    given = arguments(node) if node.op in (QUANTIZE, DYNAMIC) else {}
    if node.op == QUANTIZE:
        how = {name: given[name] for name in ("scale", "zero_point", "qmin", "qmax")}
        return _Moved(generator, **how, halves=halves)
    if node.op == DYNAMIC:
        return _MovedFloats(generator, given["qmax"] - given["qmin"])
    op = several.get(node.args[0].name) if node.op == _GETITEM else node.short_op
    inexact = ROLES.get(op or "") in (WEIGHTED, PRODUCT, COMPUTED)
    if node.meta is None or node.meta.dtype not in ("float32", "bfloat16") or not inexact:
        return None
    narrow = node.meta.dtype == "bfloat16"
    return _Inexact(generator, _ERROR_OF_BFLOAT16 if narrow else lowered.float_error)


@dataclass(frozen=True)
class _Moved:
    """Some integers, and those of halves, a step up or down, within their range."""

    generator: torch.Generator
    scale: float
    zero_point: int
    qmin: int
    qmax: int
    halves: bool

    def __call__(self, q: Tensor, x: Tensor) -> Tensor:
        moved = q.clone(memory_format=torch.contiguous_format)
        flat = moved.view(-1)
        if self.halves:
            self._move(flat, *self._between(flat, x.reshape(-1)))
        self._move(flat, *_some(flat, self.generator))
        return moved

    def _move(self, q: Tensor, where: Tensor, steps: Tensor) -> None:
        others = q[where].to(torch.int32) + steps.to(torch.int32)
        q[where] = others.clamp(self.qmin, self.qmax).to(q.dtype)

    def _between(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Places of what lies between two integers, and for each the step to the other one."""
        rest = x.div(self.scale).add_(self.zero_point).sub_(q)
        where = rest.abs().sub_(0.5).abs_().lt(TIE).nonzero().flatten()
        return where, rest[where].sign()


@dataclass(frozen=True)
class _MovedFloats:
    """The same for integers that are floats already, of so many steps from least to largest."""

    generator: torch.Generator
    steps: int

    def __call__(self, x: Tensor) -> Tensor:
        moved = x.flatten().clone()
        where, steps = _some(moved, self.generator)
        if moved.numel():
            low, high = moved.aminmax()
            moved[where] += steps * (high.clamp(min=0) - low.clamp(max=0)) / self.steps
        return moved.reshape(x.shape)


@dataclass(frozen=True)
class _Inexact:
    """Each value off by a part of itself and of what is usual in the tensor."""

    generator: torch.Generator
    error: float

    def __call__(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        usual = torch.where(x.isfinite(), x, 0.0).float().square().mean().sqrt()
        by = self.error * torch.randn(x.shape, generator=self.generator, device=x.device)
        return torch.where(x.isfinite(), x + by * (x.abs() + usual), x).to(x.dtype)


@dataclass(frozen=True)
class _Rounded:
    """Each value off by up to half a step, a share of the largest in its row."""

    generator: torch.Generator
    share: float

    def __call__(self, x: Tensor) -> Tensor:
        if not x.numel() or not x.is_floating_point():
            return x
        by = torch.rand(x.shape, generator=self.generator, device=x.device) - 0.5
        return x + by * self.share * x.abs().amax(-1, keepdim=True)


@dataclass(frozen=True)
class _StatesRounded:
    """A recurrent layer that reads its own states off by up to half a step, a share of the largest.

    What that makes of the states' products is added to the biases, so that it is the same at each
    step. It is all that rounds where the sequences are zeros.
    """

    function: Callable[..., tuple[Tensor, ...]]
    generator: torch.Generator
    share: float

    def __call__(
        self,
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        *how: Any,
        **named: Any,
    ) -> tuple[Tensor, ...]:
        exact = self.function(input, hx, params, has_biases, *how, **named)
        if not has_biases or not exact[0].numel():
            return exact
        largest = self.share * exact[0].abs().max()
        moved = list(params)
        for index, bias in enumerate(moved):
            if bias.dim() == 1 and moved[index - 1].dim() == 1:  # the states': behind the input's
                weight = moved[index - 2]
                by = torch.rand(weight.shape[1], generator=self.generator, device=weight.device)
                moved[index] = bias + weight @ ((by - 0.5) * largest)
        return self.function(input, hx, moved, has_biases, *how, **named)


def _some(flat: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of a flat tensor, and for each a step up or down."""
    count = min(flat.numel(), max(AT_LEAST, round(SHARE * flat.numel())))
    size = (count,)
    where = torch.randint(max(1, flat.numel()), size, generator=generator, device=flat.device)
    steps = 2.0 * torch.randint(2, size, generator=generator, device=flat.device) - 1.0
    return where, steps
