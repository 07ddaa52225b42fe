"""Layers whose plain form ONNX Runtime or OpenVINO computes otherwise: they get another.

What goes into a layer has a zero point other than 0, from the values below zero that nothing
clipped.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from sweeping import swept
from torch import nn
from torch.nn import functional as F

import octavo
from octavo.graph.graph import Ref
from octavo.graph.program import run_of
from octavo.runtimes import lower

RUNTIMES = ("onnxruntime", "openvino")
# Near enough for a few integers that are a step off; a wrong zero point leaves less than 25.
AGREES_DB = 45.0


class Between(nn.Module):
    """A function between two convolutions, with or without an activation in front."""

    def __init__(self, dims, function, activation, shape):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.a, self.act = convolution(3, 8, 1), activation
        self.function = function
        with torch.no_grad():
            found = self.function(self.act(self.a(torch.zeros(2, 3, *shape)))).shape
        self.b = convolution(found[1], 4, [min(3, size) for size in found[2:]])

    def forward(self, x):
        return self.b(self.function(self.act(self.a(x))))


SHAPES = {1: (12,), 2: (12, 9), 3: (6, 5, 7)}
FUNCTIONS = {
    "pad before": (1, lambda y: F.pad(y, (2, 0))),
    "pad both": (1, lambda y: F.pad(y, (1, 1))),
    "pad width": (2, lambda y: F.pad(y, (2, 0))),
    "pad height": (2, lambda y: F.pad(y, (0, 0, 0, 3))),
    "pad unevenly": (2, lambda y: F.pad(y, (1, 2, 3, 0))),
    "pad and crop": (2, lambda y: F.pad(y, (-1, 2, 0, -2))),
    "pad channels": (2, lambda y: F.pad(y, (0, 0, 0, 0, 2, 3))),
    "pad with a value": (2, lambda y: F.pad(y, (1, 1, 1, 1), value=0.5)),
    "pad in 3-d": (3, lambda y: F.pad(y, (0, 1, 0, 0, 2, 0))),
    "zero padding module": (2, nn.ZeroPad2d((0, 2, 0, 0))),
    "reflect": (2, lambda y: F.pad(y, (2, 1, 1, 1), mode="reflect")),
    "replicate": (2, lambda y: F.pad(y, (2, 1, 1, 1), mode="replicate")),
    "circular": (2, lambda y: F.pad(y, (2, 1, 1, 1), mode="circular")),
    "average in 1-d": (1, nn.AvgPool1d(3, 1, 1)),
    "average": (2, nn.AvgPool2d(3, 2, 1)),
    "average unevenly": (2, nn.AvgPool2d((3, 2), (2, 1), (1, 0))),
    "average in 3-d": (3, nn.AvgPool3d(3, 2, 1)),
    "average with windows beyond": (2, nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "average without its padding": (2, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "difference to the average": (2, lambda y: y - F.avg_pool2d(y, 3, 1, 1)),
    "maximum": (2, nn.MaxPool2d(3, 2, 1)),
    "maximum of uneven windows": (2, nn.AdaptiveMaxPool2d(5)),
    "concatenation": (2, lambda y: torch.cat([y, y.flip(1)], 1)),
    "concatenation with a pool": (2, lambda y: torch.cat([y, F.avg_pool2d(y, 3, 1, 1)], 1)),
    "concatenation of width": (2, lambda y: torch.cat([y, y], 3)),
    "stack": (2, lambda y: torch.stack([y, y], 2).flatten(1, 2)),
    "roll": (2, lambda y: y.roll(1, 2)),
    "residual": (2, lambda y: (y + y.flip(1)).relu()),
    "1x1 with stride and padding": (2, nn.Conv2d(8, 8, 1, 2, 1)),
    "1x1 with stride and padding in 1-d": (1, nn.Conv1d(8, 8, 1, 3, 2)),
    "group norm": (2, nn.GroupNorm(2, 8)),
}
ACTIVATIONS = {"none": nn.Identity(), "silu": nn.SiLU(), "relu": nn.ReLU()}


@cache
def captured(make, *which):
    """What a function makes of them, a model and its input, with its graph: for all targets."""
    torch.manual_seed(0)
    model, x = make(*which)
    return model.eval(), x, octavo.capture(model, x)


@cache
def quantized(target, make, *which):
    """For all runtimes."""
    model, x, graph = captured(make, *which)
    with captured_as(graph):
        return octavo.quantize(model, calibration=[x], target=target, progress=False), x


def check(runtime, target, make, *which):
    q, x = quantized(target, make, *which)
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > AGREES_DB
    return q, x


def between(name, activation):
    dims, function = FUNCTIONS[name]
    shape = SHAPES[dims]
    return Between(dims, function, ACTIVATIONS[activation], shape), torch.randn(2, 3, *shape) + 0.3


@pytest.mark.parametrize(("target", "activation"), [("x86-avx2", "none"), ("edge", "silu")])
@pytest.mark.parametrize("name", swept(FUNCTIONS, kept=list(FUNCTIONS)[::4]))
def test_openvino_with_zero_points(name, target, activation):
    check("openvino", target, between, name, activation)


@pytest.mark.parametrize("target", ["tensorrt", "edge"])
@pytest.mark.parametrize("name", swept(FUNCTIONS, kept=list(FUNCTIONS)[::4]))
def test_onnxruntime_loads_signed_integers(name, target, tmp_path):
    """At its default optimization, from a file: it makes them unsigned by itself."""
    onnxruntime = pytest.importorskip("onnxruntime")
    q, x = check("onnxruntime", target, between, name, "relu")
    octavo.export_onnx(q, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert sqnr_db(q.lower("reference")(x), torch.from_numpy(found)) > AGREES_DB


SHIFTED = {
    "normalized": lambda x: (x - 0.5) / 0.3,
    "scaled and shifted": lambda x: 2 * x + 1,
    "batch norm": nn.BatchNorm2d(3),
}


class Shifted(nn.Module):
    def __init__(self, shift, pool):
        super().__init__()
        self.shift, self.pool, self.out = shift, pool, nn.Conv2d(3, 4, 2)

    def forward(self, x):
        return self.out(self.pool(self.shift(x)))


def shifted(name, pool):
    nn.init.constant_(SHIFTED["batch norm"].bias, 0.7)
    return Shifted(SHIFTED[name], pool), torch.randn(2, 3, 8, 8) + 0.3


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(3, 1, 1), nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(2))]
)
@pytest.mark.parametrize("name", SHIFTED)
def test_openvino_counts_zeros_around_what_is_shifted(name, pool):
    check("openvino", "x86-avx2", shifted, name, pool)


TRANSPOSED = {
    "kernel 1, stride 2": (nn.ConvTranspose2d, {"kernel_size": 1, "stride": 2}),
    "kernel 2, stride 3": (nn.ConvTranspose1d, {"kernel_size": 2, "stride": 3, "padding": 1}),
    "one axis": (nn.ConvTranspose2d, {"kernel_size": (1, 4), "stride": (2, 2)}),
    "grouped": (nn.ConvTranspose1d, {"kernel_size": 2, "stride": 3, "groups": 2}),
    "dilated": (nn.ConvTranspose2d, {"kernel_size": 2, "stride": 3, "dilation": 2}),
    "in 3-d": (nn.ConvTranspose3d, {"kernel_size": 1, "stride": 2, "output_padding": 1}),
}


def transposed(name, activation):
    kind, settings = TRANSPOSED[name]
    dims = int(kind.__name__[-2])
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(8, 8, **settings)
    behind = nn.ReLU(), convolution(8, 4, 1)
    model = nn.Sequential(convolution(3, 8, 1), ACTIVATIONS[activation], layer, *behind)
    return model, torch.randn(2, 3, *[6] * dims) + 0.2


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_transposed_convolutions_with_gaps(runtime, name, activation):
    check(runtime, "x86-avx2", transposed, name, activation)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_padding_that_an_integer_layer_and_a_float_one_read(runtime):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            y = F.pad(self.a(x), (2, 0))
            return self.b(y), y.softmax(1)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8) + 0.3
    q = octavo.quantize(Both(), calibration=[x], progress=False)
    for want, have in zip(q.lower("reference")(x), q.lower(runtime)(x), strict=True):
        assert sqnr_db(want, have) > AGREES_DB


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 1), nn.AvgPool2d(2), nn.Conv2d(5, 4, 3)])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_zeros_around_a_pool_are_numbers(runtime, pool, tmp_path):
    """ONNX Runtime makes padding of a maximum pool out of them, where all else is negative."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.pool = nn.Conv2d(3, 5, 3), pool

        def forward(self, x):
            return self.pool(F.pad(-self.a(x).exp(), (1, 1, 1, 1)))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    q = octavo.quantize(Padded(), calibration=[x], progress=False)
    assert sqnr_db(q.lower("reference")(x), q.lower(runtime)(x)) > AGREES_DB
    if runtime == "onnxruntime":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            octavo.export_onnx(q, tmp_path / "m.onnx")  # with its own settings too


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.parts(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def attention():
    return Attention(), torch.randn(2, 7, 16)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "edge"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_attention_on_integers(runtime, target):
    check(runtime, target, attention)


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x):
        return self.b(self.a(x).softmax(1))


def small_probabilities(largest):
    return Softmax(), torch.randn(2, 4, 8) * largest


@pytest.mark.parametrize("largest", [1e-3, 1.0])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_softmax_of_small_probabilities(runtime, largest):
    """Its scale is finer than 1 / 256, for which ONNX Runtime's own is made."""
    check(runtime, "onnxruntime", small_probabilities, largest)


class Reduced(nn.Module):
    def __init__(self, rank, function):
        super().__init__()
        self.a, self.function = (nn.Conv1d, nn.Conv2d)[rank - 3](3, 4, 1), function
        self.b = nn.LazyLinear(5)

    def forward(self, x):
        return self.b(self.function(self.a(x)).flatten(1))


REDUCTIONS = {
    "mean over time": (3, lambda y: y.mean(2)),
    "mean over time, kept": (3, lambda y: y.mean(2, keepdim=True)),
    "mean over channels": (3, lambda y: y.mean(1)),
    "mean of a small multiple": (3, lambda y: (y * 1e-3).mean(2)),
    "mean of a moved multiple": (3, lambda y: (-0.5 * torch.cat(y.chunk(2, 1), 1)).mean(2)),
    "global average": (3, nn.AdaptiveAvgPool1d(1)),
    "mean over width": (4, lambda y: y.mean(3)),
    "mean over pixels": (4, lambda y: y.mean((2, 3))),
    "sum over time": (3, lambda y: y.sum(2)),
    "sum over pixels": (4, lambda y: y.sum((2, 3), keepdim=True)),
    "largest": (3, lambda y: F.silu(y).amax(2)),
    "smallest": (4, lambda y: F.silu(y).amin((2, 3), keepdim=True)),
    "largest of all": (3, lambda y: F.silu(y).max(2).values),
}


def reduced(name):
    rank, function = REDUCTIONS[name]
    x = torch.randn(9, 3, *(12, 7)[: rank - 2]) + 0.3
    model = Reduced(rank, function)
    model(x)
    return model, x


@pytest.mark.parametrize("target", ["x86-avx2", "edge"])
@pytest.mark.parametrize("name", swept(REDUCTIONS, kept=list(REDUCTIONS)[::3]))
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_batches_larger_than_the_channels(runtime, name, target):
    check(runtime, target, reduced, name)


def test_what_follows_a_mean_over_time_is_of_each_channel():
    """OpenVINO fuses the batch norm and the rounding behind it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)
            self.b = nn.Conv1d(4, 5, 1)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            return self.b(self.norm(self.a(x).sin().mean(2, keepdim=True)))

    check("openvino", "x86-avx2", lambda: (Model(), torch.randn(9, 3, 8)))


class BothWays(nn.Module):
    """A sum of what an integer layer reads too: the sum reads its integers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return self.b(y), self.c(y.sum((2, 3))), self.c(y.flatten(2).sum(2))


@pytest.mark.parametrize("target", ["x86-avx2", "edge"])
def test_sums_count_the_zero_point_of_each_value(target):
    torch.manual_seed(0)
    x = torch.randn(9, 3, 6, 6) + 0.3
    q = octavo.quantize(BothWays(), calibration=[x], target=target, progress=False)
    for want, have in zip(q.lower("reference")(x), q.lower("openvino")(x), strict=True):
        assert sqnr_db(want, have) > AGREES_DB


def without_statistics():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    return model, torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_norm_without_statistics_takes_those_of_the_batch(runtime):
    check(runtime, "x86-avx2", without_statistics)


class Summand(nn.Module):
    """A convolution whose result is rounded before it is added to something."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.body(x)).relu())


@pytest.mark.parametrize("target", ["edge", "arm", "onnxruntime"])
def test_a_summand_is_rounded_before_it_is_added(target):
    """OpenVINO left that out, and a tenth of the integers behind the sum were a step off."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 12, 12)
    q = octavo.quantize(Summand().eval(), calibration=[x], target=target, progress=False)
    names = [node.name for node in q.graph.nodes if node.op == "octavo.quantize.default"]
    assert "body.2.quantized" in names
    # Alone, since a graph that gives more results is fused otherwise.
    sum_alone = replace(q.graph, outputs=[Ref(names[-1])]).pruned()
    (right,) = run_of(sum_alone)(x)
    (found,) = lower(sum_alone, "openvino", torch.device("cpu")).run(x)
    assert (right != found).float().mean() < 1e-3


@pytest.mark.parametrize("weight", ["int8", "int16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sixteen_bits_of_each_call_are_computed_in_float(runtime, symmetric, weight):
    """No runtime multiplies such integers."""
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    spec = octavo.QSpec(octavo.Scheme("int16", symmetric=symmetric))
    scheme = octavo.Scheme(weight, symmetric=True, channel_axis=0)
    qconfig = octavo.QConfig(spec, octavo.QSpec(scheme, octavo.MinMax()))
    x = torch.randn(5, 8)
    q = octavo.quantize(nn.Linear(8, 6), x, mode="dynamic", qconfig=qconfig, progress=False)
    with pytest.warns(octavo.OctavoWarning, match="run in float on the"):
        found = q.lower(runtime)(x)
    assert sqnr_db(q.lower("reference")(x), found) > 70
