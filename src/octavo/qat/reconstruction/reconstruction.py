"""Reconstruction: one block after the other learns to give the float block's output (BRECQ, Li et
al. 2021, arXiv:2102.05426, equation 10; QDrop, Wei et al. 2022, arXiv:2203.05740).

Of a block ``f`` that reads ``x`` in the float model and ``x'`` in the quantized one, rounded to
``f'``, what is made small is ``E |f'(x'') - f(x)|^2``, where each value of ``x''`` is that of ``x``
with the probability ``drop``, and else that of ``x'``; inside of ``f'`` the rounding of activations
is dropped alike. A quarter of the samples is held back: a block whose output on them is no nearer
to float than before stays as it was.

A layer alone would not know that the next one takes back a part of its errors, and of the model as
a whole there is more that can be learned than a few hundred samples say. But scales and biases are
few: behind the blocks those of all layers learn together what the model gives, with the integers as
they are (as Chen et al. 2024, EfficientQAT, arXiv:2407.11062, have it for scales).

Tested in tests/qat/test_reconstruction.py.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.arguments import COUNT, INTEGER, NUMBER, SHARE, expect, optional
from octavo.errors import PlanError
from octavo.graph.batches import size_of
from octavo.graph.channels_last import channels_last
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.graph.qdq import QUANTIZE
from octavo.numerics.sqnr import sqnr_db
from octavo.progress import telling
from octavo.qat.reconstruction.blocks import Block, blocks_of, part_of
from octavo.qat.reconstruction.learned import Learned, leader
from octavo.quantization.float_graph import roundings_removed
from octavo.quantization.plan import Plan
from octavo.quantization.weights import Layer, WeightMethod, quantized_layers
from octavo.quantization.weights.adaround import FREE, WEIGHT, beta_at, steps_in

Batch = Sequence[Tensor]
_CHUNK = 32  # samples of a step
_HELD_BACK = 4  # one chunk in so many
# Rates of Adam: of weights as AdaRound has it; of logarithms of scales, and of biases in root mean
# squares of what their layer gives, in parts of what rounding the block's weights costs.
_WEIGHT_RATE, _SCALE_RATE, _BIAS_RATE = 0.02, 0.016, 0.008

SETTLED = 0.5  # of the steps are until weights are integers; biases and scales go on learning
# Of the rates, where the whole model learns: its errors are those of all layers.
_TOGETHER = 0.16


@dataclass(frozen=True)
class Reconstruction(WeightMethod):
    """Rounded weights, scales and biases are learned block by block, so that each block's output is
    near to the float model's; then scales and biases of all blocks together.

    It comes behind all other methods, whichever place it is given, and goes on from what they have
    made. It is for a model that is one graph, in `octavo.quantize` alone, since it needs the data
    at hand; what it brought is a row as those of ``effort``, and the model stays as it was where
    outputs on held-back data are no nearer to float. Tables are left as they are, and weights that
    several layers share.

    Args:
        steps: of Adam, for each block, and for all of them together.
        seconds: that all of it may take: fewer steps are made where they would take longer, so
            that the integers depend on how fast the machine is. ``None``: all are made.
        drop: how many of the activations are not rounded in training, and of the block's inputs
            are those of the float model, from 0 to 1.
        samples: that are used at most.
        seed: of what is drawn.

    Raises:
        InputError: a number is none, or out of its range.
        PlanError: it is given to what has no data at hand, `octavo.calibrate`, or single layers.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        >>> q = octavo.quantize(
        ...     layer,
        ...     calibration=list(torch.randn(256, 64).split(32)),
        ...     weights=[octavo.Reconstruction(steps=20)],
        ...     progress=False,
        ... )
        >>> [step["step"] for step in q.provenance["steps"]]
        ['reconstruction']
    """

    name: ClassVar[str] = "reconstruction"

    steps: int = 500
    seconds: float | None = None
    drop: float = 0.5
    samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        expect(COUNT, steps=self.steps, samples=self.samples)
        optional(NUMBER, seconds=self.seconds)
        expect(SHARE, drop=self.drop)
        expect(INTEGER, seed=self.seed)

    def fits(self, layer: Layer) -> bool:
        raise PlanError(
            "octavo.Reconstruction needs whole blocks and the data at hand, and this is one layer "
            f"({layer.name!r}): give it to octavo.quantize for a model that is one graph, or leave "
            "it out of weights="
        )


@dataclass(frozen=True)
class Chunks:
    """Calibration data in parts of a few samples.

    Attributes:
        fitted: what blocks learn from.
        held: what they are judged on; the same where there is one part alone.
    """

    fitted: Sequence[Batch]
    held: Sequence[Batch]

    @classmethod
    def of(cls, batches: Sequence[Batch], is_open: bool = True, samples: int = 1024) -> Chunks:
        """Batches of any size are cut into chunks of 32 samples if the model takes that, and every
        fourth chunk is held back, or the last one of fewer.
        """
        chunks: list[Batch] = []
        for batch in batches:
            sizes = {tensor.shape[:1] for tensor in batch}
            if is_open and len(sizes) == 1 and sizes != {()}:
                size = min(_CHUNK, max(size_of(batch) // 2, 1)) if len(batches) == 1 else _CHUNK
                chunks += zip(*(tensor.split(size) for tensor in batch), strict=True)
            else:
                chunks.append(batch)
        seen = 0
        for count, chunk in enumerate(chunks, 1):
            seen += size_of(chunk)
            if seen >= samples:
                chunks = chunks[:count]
                break
        held = chunks[_HELD_BACK - 1 :: _HELD_BACK] or chunks[-1:]
        fitted = [chunk for chunk in chunks if not any(chunk is other for other in held)]
        return cls(fitted or held, held)


@dataclass(frozen=True)
class BlockLearned:
    """What a block has learned.

    Attributes:
        block: its name.
        before_db, after_db: SQNR of its outputs on held-back samples.
        steps: that were made.
        seconds: that it took.
        kept: whether the model has what was learned.
    """

    block: str
    before_db: float
    after_db: float
    steps: int
    seconds: float
    kept: bool

    @property
    def diverged(self) -> bool:
        """Whether it came to values that are not finite."""
        return not self.after_db > -math.inf


@dataclass(frozen=True)
class Reconstructed:
    """What blocks have come to.

    Attributes:
        quantized: the QDQ graph with what those that are kept have learned.
        blocks: those that have been tried, in order.
        count: of all blocks; more than were tried if it was interrupted.
        together: what all scales and biases have learned behind them; ``None`` of a single block,
            or if it was interrupted.
    """

    quantized: Graph
    blocks: tuple[BlockLearned, ...]
    count: int
    together: BlockLearned | None = None

    @property
    def was_interrupted(self) -> bool:
        """Whether there was more to learn."""
        return len(self.blocks) < self.count or (self.count > 1 and self.together is None)


def reconstructed(
    graph: Graph,
    plan: Plan,
    quantized: Graph,
    chunks: Chunks,
    method: Reconstruction,
    progress: bool = False,
) -> Reconstructed:
    """The quantized graph with blocks that have learned, and what each has.

    An interruption (Ctrl-C) ends it; blocks that are done stay learned.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
        quantized: the QDQ graph that other methods have led to.
        chunks: what blocks learn from, and are judged on.
        method: how.
        progress: say which block it is that learns.
    """
    done: list[BlockLearned] = []
    together = None
    with torch.inference_mode(False), telling("reconstruction", progress) as tell:
        walk = _Walk(graph, plan, quantized, chunks, method)
        started = time.perf_counter()
        try:
            for index, block in enumerate(walk.blocks):
                tell(f"block {index + 1} of {len(walk.blocks)}, {block.name}")
                spent = time.perf_counter() - started
                left = None if method.seconds is None else max(method.seconds - spent, 0.0)
                # The model as a whole takes half as long as all of its blocks.
                count = len(walk.blocks) * (1.5 if walk.goes_on else 1.0)
                seconds = None if left is None else left / (count - index)
                done.append(walk.learn(index, seconds))
            if walk.goes_on:
                tell("all blocks together")
                spent = time.perf_counter() - started
                left = None if method.seconds is None else max(method.seconds - spent, 0.0)
                together = walk.learn_together(left)
        except KeyboardInterrupt:
            tell("interrupted")
    return Reconstructed(walk.quantized, tuple(done), len(walk.blocks), together)


class _Walk:
    """From block to block: what stands at the border of the next one, chunk by chunk, in float and
    as the quantized model has it by then.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        quantized: Graph,
        chunks: Chunks,
        method: Reconstruction,
    ) -> None:
        self.graph, self.quantized = _for_gradients(graph), _for_gradients(quantized)
        self.plan, self.method = plan, method
        self.layers = quantized_layers(self.graph, plan)
        self.blocks = blocks_of(graph, {layer.name for layer in self.layers})
        names, self.count = graph.input_names(), len(chunks.fitted)
        every = [*chunks.fitted, *(() if chunks.held is chunks.fitted else chunks.held)]
        self.held = slice(0 if chunks.held is chunks.fitted else self.count, None)
        self.exact = [dict(zip(names, map(self._placed, chunk), strict=True)) for chunk in every]
        self.rounded = [dict(values) for values in self.exact]
        self.chance = torch.Generator(graph.device).manual_seed(method.seed)
        weights = Counter(layer.weight_name for layer in self.layers)
        self.shared = {n.name for n in self.layers if weights[n.weight_name] > 1}
        self.free = self._free_scales()

    @property
    def goes_on(self) -> bool:
        """Whether there is more than one block, so that all of them can learn together."""
        return len(self.blocks) > 1

    def learn(self, at: int, seconds: float | None) -> BlockLearned:
        """A block learns; what it gives then stands at the next border."""
        learned, targets, results = self._learn(self.blocks[at], self.free[at], SETTLED, seconds)
        self._go_on(at, targets, results)
        return learned

    def learn_together(self, seconds: float | None) -> BlockLearned:
        """Scales and biases of all blocks learn what the model gives."""
        ends = [end for block in self.blocks for end in block.ends if end in self.graph.leaving]
        layers = [layer for block in self.blocks for layer in block.layers]
        whole = Block((), tuple(ends), tuple(layers))
        return self._learn(whole, self.free[-1], 0.0, seconds)[0]

    def _learn(
        self, block: Block, free: set[str], settled: float, seconds: float | None
    ) -> tuple[BlockLearned, Sequence[Outputs], Sequence[Outputs]]:
        """What a block has learned, what it gives in float, and what it gives then."""
        started = time.perf_counter()
        targets = _outputs(part_of(self.graph, block), self.exact)
        part = part_of(self.quantized, block)
        own = [n for n in self.layers if n.name in part.by_name and n.name not in self.shared]
        learned = Learned.of(part, own, self.plan, free, self._dropped)
        steps = self._fit(block, learned, targets, settled, seconds)
        changed = learned.applied_to(self.quantized, self.plan)
        found = [_outputs(each, self.rounded) for each in (part, part_of(changed, block))]
        before, after = (_noise(each[self.held], targets[self.held]) for each in found)
        kept = after < before  # not where it is no number
        if kept:
            self.quantized = changed
        spent = time.perf_counter() - started
        db = (sqnr_db(1.0, before), sqnr_db(1.0, after))
        return BlockLearned(block.name, *db, steps, spent, kept), targets, found[kept]

    def _fit(
        self,
        block: Block,
        learned: Learned,
        targets: Sequence[Outputs],
        settled: float,
        seconds: float | None,
    ) -> int:
        """Adam's steps on what is learned; how many there were. Weights are integers after a share
        of them, or before the first.
        """
        if not settled:
            learned.restart()
        run, names = learned.program(self.plan), learned.part.input_names()
        signals = [_mean_square(tensors) for tensors in zip(*targets[: self.count], strict=True)]
        # The term that drives weights is weighed with what their rounding alone costs.
        alone = _outputs(roundings_removed(learned.part), self.exact[:1])
        unit = max(float(_error(alone[0], targets[0], signals)), _SMALLEST)
        groups = self._rates(block, learned, unit**0.5 * (1.0 if settled else _TOGETHER))
        if not groups:
            return 0
        optimizer, rates, made = torch.optim.Adam(groups), [group["lr"] for group in groups], 0
        is_open = settled > 0.0
        for done in steps_in(self.method.steps, seconds):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _falling(done, settled) if group["falls"] else rate
            if is_open and done >= settled:
                is_open = False
                learned.settle()
                if not self._is_nearer(block, learned, targets):
                    learned.restart()
            at = self._drawn(self.count)
            with torch.enable_grad():
                results = run(*(self._mixed(at, name, block) for name in names))
                loss = _error(results, targets[at], signals) / unit
                if is_open and done >= FREE * settled:
                    loss = loss + WEIGHT * learned.undecided(beta_at(done / settled))
                optimizer.zero_grad()
                if not loss.requires_grad:
                    break  # weights alone had something to learn
                loss.backward()
            optimizer.step()
            made += 1
        return made

    def _is_nearer(self, block: Block, learned: Learned, targets: Sequence[Outputs]) -> bool:
        """Whether a block has become better on what it learns from."""
        changed = part_of(learned.applied_to(self.quantized, self.plan), block)
        fitted = self.rounded[: self.count]
        before, after = (_outputs(part, fitted) for part in (learned.part, changed))
        return _noise(after, targets[: self.count]) < _noise(before, targets[: self.count])

    def _rates(self, block: Block, learned: Learned, cost: float) -> list[dict[str, Any]]:
        """What is learned, with its rate, and whether that falls to 0."""
        stretches = [one.stretch for one in learned.weights.values()]
        stretches += [one.stretch for one in learned.ranges.values()]
        scales = [stretch for stretch in stretches if stretch.requires_grad]
        logits = [weight.logits for weight in learned.weights.values()]
        layers = tuple(learned.biases)
        given = _outputs(part_of(self.graph, block), self.exact[:1], layers)[0]
        sizes = [_mean_square([values]) ** 0.5 for values in given]
        groups = [
            (logits, _WEIGHT_RATE, False),
            (scales, _SCALE_RATE * cost, True),
            *(
                ([learned.biases[n]], _BIAS_RATE * cost * s, True)
                for n, s in zip(layers, sizes, strict=True)
            ),
        ]
        return [{"params": p, "lr": rate, "falls": falls} for p, rate, falls in groups if p]

    def _mixed(self, at: int, name: str, block: Block) -> Tensor:
        """A block's input in training: as it is in float where rounding is dropped."""
        rounded = self.rounded[at][name]
        if name not in block.starts:
            return rounded
        return torch.where(self._dropped(rounded), self.exact[at][name], rounded)

    def _dropped(self, x: Tensor) -> Tensor:
        """Of which values the rounding is dropped."""
        return torch.rand(x.shape, generator=self.chance, device=x.device) < self.method.drop

    def _drawn(self, count: int) -> int:
        device = self.chance.device
        return int(torch.randint(count, (), generator=self.chance, device=device))

    def _go_on(self, at: int, exact: Sequence[Outputs], rounded: Sequence[Outputs]) -> None:
        """Behind a block: what it gave is known, and what nobody reads any more is forgotten."""
        later = {name for block in self.blocks[at + 1 :] for name in block.starts}
        later |= set(self.graph.input_names())
        for known, given in ((self.exact, exact), (self.rounded, rounded)):
            for values, outputs in zip(known, given, strict=True):
                values.update(zip(self.blocks[at].ends, outputs, strict=True))
                for name in values.keys() - later:
                    del values[name]

    def _free_scales(self) -> list[set[str]]:
        """Of each block, and of all of them together, the tensors whose scale no other block rounds
        with, and on which no bias depends that stays as it is.
        """
        parts = [part_of(self.quantized, block) for block in self.blocks]
        rounded = [
            {leader(self.plan, node.args[0].name) for node in part.nodes if node.op == QUANTIZE}
            for part in parts
        ]
        count = Counter(name for names in rounded for name in names)
        kept = [n.input for n in self.layers if n.name in self.shared and n.input is not None]
        bound = {leader(self.plan, name) for name in kept if name in self.plan.quantized}
        own = [{name for name in names if count[name] == 1} - bound for names in rounded]
        return [*own, set(count) - bound]

    def _placed(self, tensor: Tensor) -> Tensor:
        placed = channels_last(tensor.to(self.graph.device))
        return placed.clone() if placed.is_inference() else placed


Outputs = Sequence[Tensor]
_SMALLEST = 1e-12  # noise over signal


def _falling(done: float, settled: float) -> float:
    """A rate's share: whole until weights are settled, and a half cosine from there on."""
    return (1 + math.cos(math.pi * max(done - settled, 0.0) / (1 - settled))) / 2


def _for_gradients(graph: Graph) -> Graph:
    """The graph with tensors that can be part of a gradient's computation."""
    constants = {n: t.clone() if t.is_inference() else t for n, t in graph.constants.items()}
    return replace(graph, constants=constants)


@torch.no_grad()
def _outputs(
    part: Graph, values: Sequence[Mapping[str, Tensor]], names: Sequence[str] | None = None
) -> list[Outputs]:
    """What a part of a graph gives, of each chunk."""
    run, inputs = run_of(part, part.device, names), part.input_names()
    return [run(*(known[name] for name in inputs)) for known in values]


def _mean_square(tensors: Sequence[Tensor]) -> float:
    """Of all finite values."""
    finite = [tensor[tensor.isfinite()].double() for tensor in tensors]
    count = sum(values.numel() for values in finite)
    return sum(float(values.square().sum()) for values in finite) / max(count, 1)


def _error(results: Outputs, targets: Outputs, signals: Sequence[float]) -> Tensor:
    """Mean square of the error over that of the signal, the mean over outputs; what is not finite
    in float, such as a hidden score, does not count.
    """
    shares = [
        torch.where(target.isfinite(), result - target, 0.0).square().mean()
        / max(signal, _SMALLEST)
        for result, target, signal in zip(results, targets, signals, strict=True)
    ]
    return torch.stack(shares).mean()


def _noise(found: Sequence[Outputs], targets: Sequence[Outputs]) -> float:
    """`_error` of all chunks."""
    signals = [_mean_square(tensors) for tensors in zip(*targets, strict=True)]
    errors = [_error(*pair, signals) for pair in zip(found, targets, strict=True)]
    return float(torch.stack(errors).double().mean())
