"""Networks that are neither classifiers of images nor of text, written here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.entry import Call, Entry, images

WIDTH, CLASSES = 32, 5


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())


class Detector(nn.Module):
    """Like YOLO: ``[N, 3, S, S]`` -> boxes and classes at two scales, ``[N, boxes, 9]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _block(32, 32))
        self.deeper = nn.Sequential(_block(32, 64, 2), _block(64, 64))
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (3, 5))
        self.mixed = _block(3 * 64, 64)
        self.up = nn.Upsample(scale_factor=2.0)
        self.joined = _block(64 + 32, 32)
        self.heads = nn.ModuleList([nn.Conv2d(32, 4 + CLASSES, 1), nn.Conv2d(64, 4 + CLASSES, 1)])

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.deeper(fine)
        coarse = self.mixed(torch.cat([coarse, *(pool(coarse) for pool in self.pools)], dim=1))
        fine = self.joined(torch.cat([self.up(coarse), fine], dim=1))
        maps = [head(level) for head, level in zip(self.heads, (fine, coarse), strict=True)]
        rows = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
        place, scores = rows[..., :4], rows[..., 4:]
        return torch.cat([place[..., :2].sigmoid(), place[..., 2:].exp(), scores.sigmoid()], dim=-1)


class GraphNetwork(nn.Module):
    """Kipf & Welling 2017 (arXiv:1609.02907): nodes ``[N, V, 16]`` and edges ``[N, E, 2]``.

    What a node hears of its neighbours is added up by scattering.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.enter(nodes)
        source = edges[..., :1].expand(-1, -1, WIDTH)
        target = edges[..., 1:].expand(-1, -1, WIDTH)
        for layer in self.layers:
            heard = torch.zeros_like(x).scatter_add(1, target, x.gather(1, source))
            x = layer(torch.cat([x, heard], dim=-1)).relu()
        scores: Tensor = self.head(x.mean(1))
        return scores


class PointNet(nn.Module):
    """Qi et al. 2017 (arXiv:1612.00593): points ``[N, 3, P]`` -> scores ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(
            *(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU()),
            *(nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.points(x).amax(2))
        return scores


class _Residual(nn.Module):
    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(time, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        found = self.convs[0](nn.functional.silu(self.norms[0](x)))
        found = found + self.time(nn.functional.silu(time))[:, :, None, None]
        return x + self.convs[1](nn.functional.silu(self.norms[1](found)))


class Diffusion(nn.Module):
    """Ho et al. 2020 (arXiv:2006.11239): noisy ``[N, 3, S, S]`` at time ``[N]`` -> its noise."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, 64), nn.SiLU(), nn.Linear(64, 64))
        self.enter, self.leave = (
            nn.Conv2d(3, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, 3, 3, padding=1),
        )
        self.down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Residual(WIDTH, 64) for _ in range(3))
        self.norm = nn.GroupNorm(4, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.up = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        places = torch.exp(torch.arange(WIDTH // 2) * (-math.log(10000) / (WIDTH // 2)))
        angles = time[:, None] * places[None]
        told = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        fine = self.blocks[0](self.enter(x), told)
        coarse = self.blocks[1](self.down(fine), told)
        rows = self.norm(coarse).flatten(2).transpose(1, 2)
        rows = self.attention(rows, rows, rows, need_weights=False)[0].transpose(1, 2)
        coarse = coarse + rows.reshape_as(coarse)
        wide = nn.functional.interpolate(coarse, scale_factor=2.0)
        noise: Tensor = self.leave(self.blocks[2](self.up(torch.cat([wide, fine], dim=1)), told))
        return noise


class Recommender(nn.Module):
    """Naumov et al. 2019 (arXiv:1906.00091): ``[N, 13]`` and bags ``[N, 4, 3]`` -> ``[N, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, 16, mode="sum") for _ in range(4))
        self.top = nn.Sequential(nn.Linear(16 + 25, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers: Tensor, bags: Tensor) -> Tensor:
        x = self.bottom(numbers)
        looked_up = [table(bags[:, place]) for place, table in enumerate(self.tables)]
        vectors = torch.stack([x, *looked_up], dim=1)
        pairs = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([x, pairs], dim=1)).sigmoid()


class WideAndDeep(nn.Module):
    """Cheng et al. 2016 (arXiv:1606.07792): int64 ``[N, 6]`` and ``[N, 8]`` -> ``[N, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 1)
        self.words = nn.Embedding(60, 8)
        self.deep = nn.Sequential(
            *(nn.Linear(48 + 8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        )

    def forward(self, words: Tensor, numbers: Tensor) -> Tensor:
        deep = self.deep(torch.cat([self.words(words).flatten(1), numbers], dim=1))
        return torch.sigmoid(self.wide(numbers) + deep)


class Autoencoder(nn.Module):
    """``[N, 3, S, S]`` -> the same, by way of 8 channels of a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 8, 4, 2, 1))
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.encoder(x))
        return image


class SuperResolution(nn.Module):
    """Lim et al. 2017 (arXiv:1707.02921): ``[N, 3, S, S]`` -> ``[N, 3, 2 S, 2 S]``."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            )
            for _ in range(3)
        )
        self.leave = nn.Sequential(
            nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(WIDTH, 3, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        first = x
        for block in self.blocks:
            x = x + 0.1 * block(x)
        image: Tensor = self.leave(x + first)
        return image


def _graph(nodes: int, edges: int) -> Callable[[int], Call]:
    return lambda batch: (
        torch.randn(batch, nodes, 16),
        torch.randint(0, nodes, (batch, edges, 2)),
    )


def _points(count: int) -> Callable[[int], Call]:
    return lambda batch: (torch.randn(batch, 3, count),)


def _noisy(size: int) -> Callable[[int], Call]:
    return lambda batch: (torch.randn(batch, 3, size, size), torch.rand(batch) * 1000)


def _clicks(batch: int) -> Call:
    return (torch.randn(batch, 13), torch.randint(0, 50, (batch, 4, 3)))


def _features(batch: int) -> Call:
    return (torch.randint(0, 60, (batch, 6)), torch.randn(batch, 8))


ENTRIES = (
    Entry("yolo_like", "torch", Detector, images(64), images(96)),
    Entry("graph_network", "torch", GraphNetwork, _graph(12, 30), _graph(9, 40)),
    Entry("pointnet", "torch", PointNet, _points(40), _points(25)),
    Entry("diffusion_unet", "torch", Diffusion, _noisy(16), _noisy(24)),
    Entry("dlrm", "torch", Recommender, _clicks),
    Entry("wide_and_deep", "torch", WideAndDeep, _features),
    Entry("autoencoder", "torch", Autoencoder, images(32), images(48)),
    Entry("edsr", "torch", SuperResolution, images(16), images(24)),
)
