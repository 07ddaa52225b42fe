"""Octavo's int8 convolutions and linear layers beside torch's (oneDNN), layer by layer.

Shapes are those of ResNet-18, ResNet-50, MobileNetV2, ResNeXt, ViT-B/16 and MiniLM, batch 1. A
kernel is called some times in a row, as layers of a model follow each other, and both take turns,
with rests.
"G/s" are multiply-adds of all threads. Both multiply, scale, add a bias, cut to 0..6 and round.
Weights have seven bits, so that CPUs without VNNI can sum pairs of products in 16 bits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import nets
from benchmarks.contest import Call, Maker, add_rounds, contest
from benchmarks.report import Goal, Report, parsed, parser
from octavo.numerics.native import library
from octavo.runtimes.native.convolution import (
    Activation,
    Convolution,
    Epilogue,
    Geometry,
    OperandsStruct,
    chunks,
    scratch_size,
)

OWN, TORCH = "Octavo", "torch"
REST_S = 0.02
PRODUCTS_OF_A_CALL = 2**29  # about a millisecond
LIMIT = 1.0  # of our time to torch's


def _sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """Words of numbers between commas."""
    return tuple(tuple(map(int, word.split(","))) for word in text.split())


# Input and output channels, kernel, stride, side of the input.
RESNET18 = _sizes(
    """
    3,64,7,2,224 64,64,3,1,56 64,128,3,2,56 64,128,1,2,56 128,128,3,1,28 128,256,3,2,28
    128,256,1,2,28 256,256,3,1,14 256,512,3,2,14 256,512,1,2,14 512,512,3,1,7
    """
)
RESNET50 = _sizes(
    """
    64,64,1,1,56 64,256,1,1,56 256,64,1,1,56 256,512,1,2,56 512,128,1,1,28 128,512,1,1,28
    512,1024,1,2,28 1024,256,1,1,14 256,1024,1,1,14 1024,2048,1,2,14 2048,512,1,1,7
    512,2048,1,1,7
    """
)
MOBILENET = _sizes(
    """
    3,32,3,2,224 32,16,1,1,112 16,96,1,1,112 96,24,1,1,56 24,144,1,1,56 144,24,1,1,56
    144,32,1,1,28 32,192,1,1,28 192,32,1,1,28 192,64,1,1,14 64,384,1,1,14 384,64,1,1,14
    384,96,1,1,14 96,576,1,1,14 576,96,1,1,14 576,160,1,1,7 160,960,1,1,7 960,160,1,1,7
    960,320,1,1,7 320,1280,1,1,7
    """
)
# Channels, kernel, stride, side; kernels of 5 are those of MobileNetV3 and EfficientNet.
DEPTHWISE = _sizes(
    """
    32,3,1,112 96,3,2,112 144,3,1,56 144,3,2,56 192,3,1,28 384,3,1,14 576,3,2,14 960,3,1,7
    72,5,2,56 240,5,1,28 672,5,1,14
    """
)
# Channels, groups, side of 3x3 windows, as in ResNeXt: groups of 4, 8, 16 and 32 results.
GROUPED = ((128, 32, 56), (256, 32, 28), (512, 32, 14), (1024, 32, 7))
# Rows, columns, results.
LINEAR = _sizes(
    """
    197,768,768 197,768,3072 197,3072,768 128,384,384 128,384,1536 128,1536,384 16,2048,1000
    1,2048,1000
    """
)


class Layer:
    """A layer of random weights and an image for it; as torch has it, rows are a matrix."""

    def __init__(self, geometry: Geometry, height: int, width: int, rows: bool = False) -> None:
        chance = torch.Generator().manual_seed(nets.SEED)
        self.geometry, self.rows = geometry, rows
        shape = (1, height, width, geometry.in_channels)
        self.x = torch.randint(0, 256, shape, generator=chance).to(torch.uint8)
        self.weight = torch.randint(-64, 65, geometry.weight_shape, generator=chance).to(torch.int8)
        channels = geometry.out_channels
        self.scales = torch.rand(channels, generator=chance) / 1e4
        self.bias = torch.randn(channels, generator=chance)
        high, wide = geometry.output(height, width)
        self.products = high * wide * self.weight.numel()
        self.repeats = max(1, min(100, PRODUCTS_OF_A_CALL // self.products))

    def own(self) -> Call:
        clip = {"activation": Activation.CLIP, "clip": (0.0, 6.0), "out_scale": 6 / 255}
        epilogue = Epilogue(self.scales, self.bias, **clip)  # type: ignore[arg-type]
        layer = Convolution.of(self.geometry, self.weight, 0, epilogue)
        step, threads = layer.struct(*self.x.shape[:3]), torch.get_num_threads()
        out = (1, *self.geometry.output(*self.x.shape[1:3]), self.geometry.out_channels)
        y = torch.empty(out, dtype=torch.uint8)
        scratch = torch.empty(scratch_size(step, chunks(step, threads)), dtype=torch.uint8)
        step.at = OperandsStruct(self.x.data_ptr(), None, y.data_ptr(), scratch.data_ptr())
        loaded = library.library()
        assert loaded is not None
        convolve = loaded.octavo_convolve_in_threads

        def call(kept: tuple[Any, ...] = (layer, scratch)) -> torch.Tensor:
            for _ in range(self.repeats):
                convolve(ctypes.byref(step), threads)
            return y.flatten(0, 2) if self.rows else y

        return call

    def torch(self) -> Call:
        g, onednn = self.geometry, torch.ops.onednn
        zero_points = torch.zeros(g.out_channels, dtype=torch.int32)
        out = (6 / 255, 0, torch.uint8, "hardtanh", [0.0, 6.0], None)
        geometry = (list(g.stride), list(g.padding[:2]), list(g.dilation), g.groups)
        if self.rows:
            x, product = self.x.flatten(0, 2), onednn.qlinear_pointwise.default
            weight = self.weight.reshape(g.out_channels, -1)
            packed = onednn.qlinear_prepack(weight, list(x.shape))
            # It has no clip of its own: what it stores ends at 6.
            out = (6 / 255, 0, torch.uint8, "relu", [], "")
            rest = (packed, self.scales, zero_points, self.bias, *out)
        else:
            x, product = self.x.permute(0, 3, 1, 2), onednn.qconv2d_pointwise.default
            weight = self.weight.permute(0, 3, 1, 2).contiguous()
            packed = onednn.qconv_prepack(weight, self.scales, 1.0, 0, *geometry, list(x.shape))
            rest = (packed, self.scales, zero_points, self.bias, *geometry, *out)

        def call() -> torch.Tensor:
            for _ in range(self.repeats):
                y: torch.Tensor = product(x, 1.0, 0, *rest)
            return y if self.rows else y.permute(0, 2, 3, 1)

        return call


def cases() -> dict[str, Layer]:
    """By what they are."""
    made = {}
    for inputs, outputs, kernel, stride, side in (*RESNET18, *RESNET50, *MOBILENET):
        geometry = Geometry(inputs, outputs, (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 4)
        name = f"{inputs} to {outputs}, {kernel}x{kernel} / {stride}, {side}x{side}"
        made[name] = Layer(geometry, side, side)
    for channels, kernel, stride, side in DEPTHWISE:
        geometry = Geometry(
            channels, channels, (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 4, groups=channels
        )
        name = f"depthwise {channels}, {kernel}x{kernel} / {stride}, {side}x{side}"
        made[name] = Layer(geometry, side, side)
    for channels, groups, side in GROUPED:
        geometry = Geometry(channels, channels, (3, 3), padding=(1,) * 4, groups=groups)
        name = f"{channels} in {groups} groups, 3x3 / 1, {side}x{side}"
        made[name] = Layer(geometry, side, side)
    for rows, inputs, outputs in LINEAR:
        name = f"linear {inputs} to {outputs}, {rows} rows"
        made[name] = Layer(Geometry(inputs, outputs), 1, rows, rows=True)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    add_rounds(made, seconds=2, each="a layer", slowest=1)
    made.add_argument("--only", default="", help="layers whose names have this")
    options = parsed(made, words)
    instructions = library.instruction_set() or "not compiled"
    report = Report(
        "convolutions", "Convolutions and linear layers", {"instructions": instructions}
    )
    ratios = []
    for name, layer in cases().items():
        if options.only not in name:
            continue
        makers: dict[str, Maker] = {TORCH: layer.torch, OWN: layer.own}
        found = contest(makers, options.rounds, options.seconds, options.slowest, REST_S)
        row: dict[str, Any] = {"layer": name, "M": layer.products / 1e6}
        for who, times in found.times.items():
            spent = times.median_s / layer.repeats
            row |= {f"{who} us": 1e6 * spent, f"{who} G/s": layer.products / spent / 1e9}
        spread = found.ratio(OWN, TORCH)
        if spread is not None:
            row |= {"ours / torch": spread.median, "quartiles": str(spread)}
            ratios.append(spread.median)
        else:
            row["error"] = "; ".join(str(r["error"]) for r in found.rows.values() if "error" in r)
        report.rows.append(row)
        report.goals.append(
            Goal(f"{name}: time over torch's", found.median_ratio(OWN, TORCH), LIMIT)
        )
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        report.goals.append(Goal("geometric mean of all: time over torch's", mean, LIMIT))
    report.finish(options.out)


if __name__ == "__main__":
    main()
