"""The pictures of the pages on concepts, drawn from what Octavo itself computes.

Each is a function of a palette that returns a figure; `PICTURES` has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import octavo
from octavo.numerics import affine
from octavo.reporting.plots import PAPER, Palette

NIGHT = Palette(
    ink="#e6edf3",
    faint="#545d68",
    first="#58a6ff",
    second="#f0a850",
    third="#4cc38a",
    bad="#ff7b72",
)
PALETTES = {"light": PAPER, "dark": NIGHT}


def panels(palette: Palette, count: int, height: float = 2.8) -> tuple[Figure, list[Any]]:
    """A figure on nothing, with its axes in a row."""
    figure = Figure(figsize=(8.4, height), layout="constrained", facecolor="none")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for one in axes:
        one.set_facecolor("none")
        one.tick_params(colors=palette.ink, labelsize=8)
        for side, spine in one.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(palette.faint)
        one.xaxis.label.set_color(palette.ink)
        one.yaxis.label.set_color(palette.ink)
        one.title.set_color(palette.ink)
    return figure, axes


def titled(axes: Any, title: str, palette: Palette, **labels: str) -> None:
    axes.set_title(title, fontsize=9.5, color=palette.ink)
    axes.set(**labels)
    axes.xaxis.label.set_fontsize(8.5)
    axes.yaxis.label.set_fontsize(8.5)


def rounded(x: Tensor, scheme: octavo.Scheme, low: Tensor, high: Tensor) -> Tensor:
    """The tensor as its integers mean it."""
    return affine.fake_quantize(x, affine.qparams_of_range(low, high, scheme))


@cache
def trained() -> tuple[nn.Module, Tensor]:
    """A small network that has learned real digits, and some of them."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(4):
        for part in torch.randperm(1500).split(64):
            loss = nn.functional.cross_entropy(net(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval(), images


def activations() -> Tensor:
    """What the last layer of the network reads, of 500 digits."""
    net, images = trained()
    with torch.no_grad():
        return net[:-1](images[:500]).flatten()


def affine_and_symmetric(palette: Palette) -> Figure:
    """Values that are never negative, on both grids of four bits."""
    figure, axes = panels(palette, 2)
    x = torch.linspace(-0.2, 1.2, 701)
    low, high = torch.tensor(0.0), torch.tensor(1.0)
    for axis, (dtype, symmetric) in zip(axes, (("uint4", False), ("int4", True)), strict=True):
        scheme = octavo.Scheme(dtype, symmetric=symmetric)
        axis.plot(x, x, color=palette.faint, linewidth=1)
        axis.plot(x, rounded(x, scheme, low, high), color=palette.first, linewidth=1.6)
        steps = len(rounded(x.clamp(0, 1), scheme, low, high).unique())
        name = "symmetric" if symmetric else "affine"
        titled(
            axis,
            f"{name}: {steps} levels between 0 and 1",
            palette,
            xlabel="value",
            ylabel="what its integer means",
        )
    return figure


def granularity(palette: Palette) -> Figure:
    """The error of each output channel's weights with one scale, and with one for each."""
    figure, axes = panels(palette, 2)
    weight = trained()[0][0].weight.detach().flatten(1)
    for channel, row in enumerate(weight):
        axes[0].plot([channel, channel], [row.min(), row.max()], color=palette.first, linewidth=5)
    titled(axes[0], "range of each channel's weights", palette, xlabel="channel", ylabel="weight")
    whole = weight.abs().max()
    single = octavo.Scheme("int4", symmetric=True)
    each = octavo.Scheme("int4", symmetric=True, channel_axis=0)
    forms = (
        ("one scale", rounded(weight, single, -whole, whole), palette.second),
        (
            "one for each channel",
            rounded(weight, each, weight.amin(1), weight.amax(1)),
            palette.first,
        ),
    )
    for place, (name, near, color) in enumerate(forms):
        error = (near - weight).square().mean(1).sqrt()
        across = np.arange(len(error)) + 0.4 * place
        axes[1].bar(across, error, width=0.4, label=name, color=color)
    titled(
        axes[1], "rounding error, four bits", palette, xlabel="channel", ylabel="root mean square"
    )
    axes[1].legend(fontsize=8, frameon=False, labelcolor=palette.ink)
    return figure


OBSERVED = {
    "MinMax": octavo.MinMax(),
    "Percentile": octavo.Percentile(percentile=99.9),
    "Histogram": octavo.Histogram(),
    "MSE": octavo.MSE(),
    "Entropy": octavo.Entropy(),
}


def ranges() -> dict[str, tuple[float, float]]:
    """What each observer makes of the activations, for four bits."""
    scheme = octavo.Scheme("uint4")
    return {name: bounds_of(observer, scheme) for name, observer in OBSERVED.items()}


def bounds_of(observer: Any, scheme: octavo.Scheme) -> tuple[float, float]:
    found = observer.bounds(observer.update(None, activations(), None), scheme)
    return float(found.low), float(found.high)


def observers(palette: Palette) -> Figure:
    """The histogram of real activations, and where each observer ends the range."""
    figure, (axes,) = panels(palette, 1, 3.4)
    seen = activations()
    axes.hist(seen.numpy(), bins=120, color=palette.first, alpha=0.6)
    axes.set_yscale("log")
    top = axes.get_ylim()[1]
    for index, (name, (_, high)) in enumerate(ranges().items()):
        color = (palette.bad, palette.second, palette.third, palette.ink, palette.faint)[index]
        axes.axvline(high, color=color, linewidth=1.5)
        height = top / 2.2 ** (index + 1)
        axes.annotate(
            f"{name} {high:.2f} ", (high, height), color=palette.ink, fontsize=8.5, ha="right"
        )
    titled(
        axes,
        "What the last layer reads, and where each observer ends the range",
        palette,
        xlabel="activation",
        ylabel="values",
    )
    return figure


def bits(palette: Palette) -> Figure:
    """Signal over noise of a network's weights, by bits."""
    figure, (axes,) = panels(palette, 1)
    weight = trained()[0][4].weight.detach().flatten(1)
    widths = range(2, 9)
    for name, axis, color in (
        ("one scale", None, palette.second),
        ("one for each channel", 0, palette.first),
    ):
        found = []
        for width in widths:
            scheme = octavo.Scheme(f"int{width}", symmetric=True, channel_axis=axis)
            low, high = (
                (weight.min(), weight.max()) if axis is None else (weight.amin(1), weight.amax(1))
            )
            noise = (rounded(weight, scheme, low, high) - weight).square().mean()
            found.append(float(10 * (weight.square().mean() / noise).log10()))
        axes.plot(list(widths), found, marker="o", color=color, label=name)
    titled(axes, "a convolution's weights", palette, xlabel="bits", ylabel="signal / noise, dB")
    axes.legend(fontsize=8, frameon=False, labelcolor=palette.ink)
    return figure


PICTURES: dict[str, Callable[[Palette], Figure]] = {
    "affine_and_symmetric": affine_and_symmetric,
    "granularity": granularity,
    "observers": observers,
    "bits": bits,
}
