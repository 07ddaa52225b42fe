"""`distributions`: how the values of each quantized tensor are spread, and where they are clipped.

The picture of Krishnamoorthi 2018 (arXiv:1806.08342, section 2) and of every article since: the
histogram of a tensor with the range that its integers cover drawn into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import BATCHES, called_rightly, expect
from octavo.graph.batches import Batch
from octavo.graph.graph import Graph, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import run_of
from octavo.measuring.layers.beside import Beside
from octavo.measuring.layers.module_errors import layers_of
from octavo.measuring.modules import modules_in, plan_of_modules, weight_name
from octavo.measuring.regions import calls_of, named, regions_in
from octavo.model.kinds import require_float, require_quantized
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule
from octavo.model.nn.float_layers import tensors_of
from octavo.numerics.observers.dyadic import DyadicHistogram, dyadic_histogram, merge_histograms
from octavo.numerics.scheme import Scheme
from octavo.quantization.plan import TensorPlan

BINS = 128  # at most; at least half of them are in use


@dataclass(frozen=True)
class Distribution:
    """The histogram of one tensor's float values.

    Attributes:
        tensor: its name.
        kind: ``"weight"``, ``"activation"`` or ``"input"``.
        values: its integers in words.
        counts: how many values fell into each bin.
        start, width: lower end of the first bin, and the width of each.
        low, high: lowest and highest value.
        clip_low, clip_high: the range that the integers hold, the widest channel's where there are
            several; ``None`` where the range is found at run time.

    Example:
        >>> seen = octavo.distributions(model, q, loader)["conv1.weight"]
        >>> seen.kind, sum(seen.counts)
        ('weight', 72)
    """

    tensor: str
    kind: str
    values: str
    counts: tuple[int, ...]
    start: float
    width: float
    low: float
    high: float
    clip_low: float | None
    clip_high: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


@called_rightly()
def distributions(
    model: nn.Module,
    q: nn.Module,
    data: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> dict[str, Distribution]:
    """The histogram of every quantized tensor, by name, in the order of the graph.

    One pass of the float model; what is kept does not grow with the data.

    Args:
        model: the float model that ``q`` was made of. It is left as it was.
        q: the quantized model; of one with regions, these, with their paths in front of the names;
            of one with modules of `octavo.nn` their weights, for which no data is needed.
        data: any iterable of batches, as `quantize` takes for calibration; few are enough.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        progress: a bar in terminals and notebooks, lines in logs.

    Raises:
        InputError: no data, or ``q`` was not made of this model.

    Example:
        >>> seen = octavo.distributions(model, q, loader)
        >>> octavo.plots.distribution(seen["conv1.weight"]).savefig("weight.png")
    """
    require_float(model, _Taps.function)
    regions = regions_in(q)
    if not regions:
        if modules := modules_in(q):
            return _of_modules(model, modules)
        own = require_quantized(q, _Taps.function)
        return _Taps.over(model, own, data, inputs, progress).result()
    expect(BATCHES, data=data)
    calls = calls_of(model, regions, data, inputs)
    found = {}
    for path, region in regions.items():
        module = model.get_submodule(path)
        for name, one in _Taps.over(module, region, calls[path], dict, progress).result().items():
            found[named(path, name)] = replace(one, tensor=named(path, name))
    return found


def _of_modules(
    model: nn.Module, modules: Mapping[str, QuantizedModule]
) -> dict[str, Distribution]:
    """Those of the weights of modules."""
    planned, found = plan_of_modules(modules).tensors, {}
    for path, layer in layers_of(model, modules).items():
        tensors, floats = modules[path].own_tensors(), tensors_of(layer)
        for short, weight in modules[path].weights.items():
            name = weight_name(path, short)
            exact = dyadic_histogram(floats[short].detach().float(), None, BINS)
            _, scale, zero_point = (tensors[part] for part in weight.names)
            clip = _reach(weight.scheme, scale, zero_point)
            found[name] = _distribution(name, planned[name], exact, clip)
    return found


class _Taps(Beside):
    """The float model with its quantized tensors as outputs, and what came out so far."""

    function = "distributions"
    words = "counting values"

    def __init__(self, model: nn.Module, q: QuantizedModel, first: Batch) -> None:
        super().__init__(model, q, first)
        known = set(self.graph.metas)
        quantized = q.plan.quantized.items()
        self.names = [n for n, t in quantized if t.kind != "weight" and n in known]
        missing = [n for n, t in quantized if t.kind == "weight" and n not in self.graph.constants]
        if not known & set(q.plan.tensors):
            missing.append("tensor")
        self.check(repr(missing[0]) if missing else None)
        self.run = run_of(self.graph, q.device, self.names)
        self.seen: dict[str, DyadicHistogram] = {}

    @torch.no_grad()
    def update(self, call: Batch) -> None:
        for name, value in zip(self.names, self.run(*self.floats(call)), strict=True):
            new = dyadic_histogram(value, None, BINS)
            self.seen[name] = merge_histograms(self.seen[name], new) if name in self.seen else new

    def result(self) -> dict[str, Distribution]:
        """All that was seen, and the weights."""
        clips = _clips(self.q.graph, self.q.plan.quantized)
        distributions = {}
        for name, planned in self.q.plan.quantized.items():
            if planned.kind == "weight":
                histogram = dyadic_histogram(self.graph.constants[name].float(), None, BINS)
            elif name in self.seen:
                histogram = self.seen[name]
            else:
                continue
            distributions[name] = _distribution(
                name, planned, histogram, clips.get(name, (None, None))
            )
        return distributions


def _distribution(
    name: str,
    planned: TensorPlan,
    seen: DyadicHistogram,
    clip: tuple[float | None, float | None],
) -> Distribution:
    counts, start, width = _readable(seen)
    return Distribution(
        tensor=name,
        kind=planned.kind,
        values=planned.values,
        counts=counts,
        start=start,
        width=width,
        low=float(seen.low),
        high=float(seen.high),
        clip_low=clip[0],
        clip_high=clip[1],
    )


def _readable(seen: DyadicHistogram) -> tuple[tuple[int, ...], float, float]:
    """Counts, start and width, of bins wide enough for as many values as there are."""
    counts, first, width = seen.counts[0], int(seen.grid[1][0]), float(seen.width[0])
    while len(counts) > max(16, 4 * int(counts.sum()) ** 0.5):
        before, behind = first % 2, (first + len(counts)) % 2
        counts = torch.nn.functional.pad(counts, (before, behind)).reshape(-1, 2).sum(1)
        first, width = first // 2, 2 * width
    last = int(counts.nonzero().max())
    return tuple(counts[: last + 1].tolist()), first * width, width


def _clips(graph: Graph, quantized: Mapping[str, TensorPlan]) -> dict[str, tuple[float, float]]:
    """The range that each tensor's integers hold, as far as it is fixed."""
    ranges = {}
    for name, planned in quantized.items():
        node = graph.by_name.get(f"{name}.dequantized")
        if node is None or planned.spec is None:
            continue
        given = arguments(node)
        numbers = given["scale"], given["zero_point"]
        scale, zero_point = (_tensor(graph, arg) for arg in numbers)
        ranges[name] = _reach(planned.spec.scheme, scale, zero_point)
    return ranges


def _reach(scheme: Scheme, scale: Tensor, zero_point: Tensor) -> tuple[float, float]:
    """What the lowest and the highest integer stand for, the widest channel's."""
    ends = torch.tensor([[scheme.qmin], [scheme.qmax]], device=scale.device)
    reach = (ends - zero_point.reshape(1, -1)) * scale.reshape(1, -1)
    return float(reach[0].min()), float(reach[1].max())


def _tensor(graph: Graph, arg: Any) -> Tensor:
    return graph.constants[arg.name] if isinstance(arg, Ref) else torch.tensor(arg)
