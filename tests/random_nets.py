"""Random small networks: what people build, in odd sizes and with odd numbers.

A network is a function of its seed. It is put together step by step on an example, so that each
step fits what the last one gives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODES = ("static", "static", "dynamic", "weight_only")  # most of what can go wrong is static
BATCHES = (1, 2, 7)
_SIZES = (5, 6, 7, 8, 9, 12)
_CHANNELS = (3, 4, 5, 8, 12, 16)

_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    lambda: nn.LeakyReLU(0.1),
)


@dataclass(frozen=True)
class Case:
    """A network, and the data that it is quantized and called with."""

    seed: int
    net: nn.Module
    calibration: list[Tensor]
    mode: str
    target: str


def case(seed: int, targets: tuple[str, ...]) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = draw.choice((_image, _image, _sequence, _series, _vector, _volume))(draw)
        scale = draw.choice((1.0, 1.0, 1.0, 1e-3, 100.0))
        shift = draw.choice((0.0, 0.0, 0.5))
        data = [scale * (torch.randn(2, *shape) + shift) for _ in range(4)]
        net = Net(draw, data[0])
        _odd_numbers(draw, net)
        _settled(net, data)
    return Case(seed, net.eval(), data, draw.choice(MODES), draw.choice(targets))


def _image(draw: random.Random) -> tuple[int, ...]:
    return draw.choice(_CHANNELS), draw.choice(_SIZES), draw.choice(_SIZES)


def _series(draw: random.Random) -> tuple[int, ...]:
    return draw.choice(_CHANNELS), draw.choice(_SIZES)


def _sequence(draw: random.Random) -> tuple[int, ...]:
    return draw.choice(_SIZES), 8


def _vector(draw: random.Random) -> tuple[int, ...]:
    return (draw.choice((8, 16, 33)),)


def _volume(draw: random.Random) -> tuple[int, ...]:
    return draw.choice((2, 3, 4)), *(draw.choice((4, 5, 6)) for _ in range(3))


class Net(nn.Module):
    """Steps in a row, on an example ``[N, ...]``; the last axes shrink on the way."""

    def __init__(self, draw: random.Random, x: Tensor, depth: int | None = None) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        tokens = x.dim() == 3 and x.shape[-1] == 8
        for _ in range(depth or draw.randint(2, 6)):
            kinds = _TOKEN_STEPS if tokens else _STEPS[x.dim()]
            step = draw.choice(kinds)(draw, x)
            try:
                with torch.no_grad():
                    after = step.eval()(x)
            except RuntimeError:  # a window that does not fit
                continue
            if after.numel():
                self.steps.append(step)
                x = after
        if depth is None and draw.random() < 0.7:
            self.steps.append(_Head(x, draw))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class _Head(nn.Module):
    """Pooled, then classes."""

    def __init__(self, x: Tensor, draw: random.Random) -> None:
        super().__init__()
        self.how = draw.choice(("mean", "pool", "flatten")) if x.dim() > 2 else "flatten"
        self.tokens = x.dim() == 3 and x.shape[-1] == 8
        with torch.no_grad():
            self.classes = nn.Linear(self._flat(x).shape[1], 5)

    def _flat(self, x: Tensor) -> Tensor:
        if self.how == "flatten" or x.dim() == 2:
            return x.flatten(1)
        if self.tokens:
            return x.mean(1)
        if self.how == "mean":
            return x.mean(list(range(2, x.dim())))
        pools = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
        return pools[x.dim()](x, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self._flat(x))


class _Residual(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        self.body = nn.Sequential(_same_size(draw, x), _activation(draw), _same_size(draw, x))
        self.after = _activation(draw)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.body(x))


class _Gate(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        self.value, self.gate = _same_size(draw, x), _same_size(draw, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class _Branches(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(_same_size(draw, x), _activation(draw))
            for _ in range(draw.choice((2, 3)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


class _Pad(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        axes = draw.randint(1, x.dim() - 2)
        self.mode = draw.choice(("constant", "constant", "reflect", "replicate", "circular"))
        if self.mode != "constant":
            axes = x.dim() - 2
        self.sizes = [draw.choice((0, 1, 2)) for _ in range(2 * axes)]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sizes, self.mode)


class _Recurrent(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        kind = draw.choice((nn.LSTM, nn.GRU, nn.RNN))
        self.layer = kind(8, 4, draw.choice((1, 2)), batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class _Attention(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, draw.choice((1, 2)), batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.layer(y, y, y, need_weights=False)[0]


class _Softmax(nn.Module):
    def __init__(self, draw: random.Random, x: Tensor) -> None:
        super().__init__()
        self.dim = draw.choice((1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(self.dim)


def _activation(draw: random.Random) -> nn.Module:
    return draw.choice(_ACTIVATIONS)()


def _conv(draw: random.Random, x: Tensor) -> nn.Module:
    dims, channels = x.dim() - 2, x.shape[1]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    groups = draw.choice([1, 1, 1, channels, *(g for g in (2, 3) if channels % g == 0)])
    kernel = draw.choice((1, 1, 2, 3, 3, 5))
    mode = draw.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
    layer = kind(
        channels,
        groups * draw.choice((1, 2)) if groups > 1 else draw.choice(_CHANNELS),
        kernel,
        stride=draw.choice((1, 1, 2)),
        padding=draw.choice((0, kernel // 2, 1)),
        dilation=draw.choice((1, 1, 2)),
        groups=groups,
        bias=draw.random() < 0.7,
        padding_mode=mode,
    )
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norm = norms[dims - 1](layer.out_channels) if draw.random() < 0.4 else nn.Identity()
    return nn.Sequential(layer, norm, _activation(draw))


def _transposed(draw: random.Random, x: Tensor) -> nn.Module:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[x.dim() - 3]
    stride = draw.choice((1, 2, 3))
    layer = kind(
        x.shape[1],
        draw.choice(_CHANNELS),
        draw.choice((1, 2, 3, 4)),
        stride=stride,
        padding=draw.choice((0, 0, 1)),
        output_padding=draw.choice((0, stride - 1)),
        bias=draw.random() < 0.7,
    )
    return nn.Sequential(layer, _activation(draw))


def _same_size(draw: random.Random, x: Tensor) -> nn.Module:
    """A layer whose result has the shape of its input."""
    if x.dim() == 2 or (x.dim() == 3 and x.shape[-1] == 8):
        return nn.Linear(x.shape[-1], x.shape[-1], bias=draw.random() < 0.7)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[x.dim() - 3]
    size, channels = draw.choice((1, 3)), x.shape[1]
    groups = draw.choice((1, 1, channels))
    return kind(channels, channels, size, padding=size // 2, groups=groups)


def _linear(draw: random.Random, x: Tensor) -> nn.Module:
    layer = nn.Linear(x.shape[-1], draw.choice((4, 7, 16, 32)), bias=draw.random() < 0.7)
    return nn.Sequential(layer, _activation(draw))


def _token_linear(draw: random.Random, x: Tensor) -> nn.Module:
    wide = draw.choice((8, 16, 24))
    return nn.Sequential(nn.Linear(8, wide), _activation(draw), nn.Linear(wide, 8))


def _pool(draw: random.Random, x: Tensor) -> nn.Module:
    dims, size = x.dim() - 3, draw.choice((2, 3))
    stride, padding = draw.choice((1, 2)), draw.choice((0, 1)) if size > 1 else 0
    ceil = draw.random() < 0.2
    if draw.random() < 0.5:
        kind = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims]
        return kind(size, stride, padding, ceil_mode=ceil)
    average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims]
    return average(size, stride, padding, ceil, count_include_pad=draw.random() < 0.6)


def _norm(draw: random.Random, x: Tensor) -> nn.Module:
    if x.dim() == 2 or (x.dim() == 3 and x.shape[-1] == 8):
        return nn.LayerNorm(x.shape[-1])
    return nn.GroupNorm(1, x.shape[1])


_SPATIAL = (
    _conv,
    _conv,
    _conv,
    _conv,
    _transposed,
    _Residual,
    _Gate,
    _Branches,
    _Pad,
    _pool,
    _pool,
)
_Step = Callable[[random.Random, Tensor], nn.Module]
_STEPS: dict[int, tuple[_Step, ...]] = {
    2: (_linear, _linear, _linear, _Residual, _Gate, _Branches, _norm),
    3: (*_SPATIAL, _norm),
    4: (*_SPATIAL, _norm, _Softmax),
    5: _SPATIAL,
}
_TOKEN_STEPS: tuple[_Step, ...] = (
    _token_linear, _token_linear, _Attention, _Recurrent, _Residual, _Gate, _norm, _Softmax
)  # fmt: skip


def _odd_numbers(draw: random.Random, net: nn.Module) -> None:
    """Dead channels, tiny and large weights, in a few of the layers."""
    with torch.no_grad():
        for module in net.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
                continue
            what = draw.choice(("", "", "", "dead", "tiny", "large", "uneven"))
            if what == "dead":
                weight[0] = draw.choice((0.0, 1e-12))
            elif what == "tiny":
                weight *= 1e-3
            elif what == "large":
                weight *= 20.0
            elif what == "uneven":
                shape = (-1, *(1 for _ in weight.shape[1:]))
                weight *= torch.logspace(-2, 1, len(weight)).reshape(shape)


def _settled(net: nn.Module, data: list[Tensor]) -> None:
    """Batch norms with the statistics of the data."""
    net.train()
    with torch.no_grad():
        for batch in data:
            net(batch)
