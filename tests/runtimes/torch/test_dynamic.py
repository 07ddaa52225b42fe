"""Dynamic layers in the torch runtime against the oracle."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from capturing import captured_as
from decibel import sqnr_db
from recurrent import Recurrent
from torch import nn

import octavo
from octavo.numerics.native import library
from octavo.runtimes.torch.int8 import lower_to

TARGET = octavo.host_target()


LAYERS = {
    "linear": (lambda: nn.Linear(24, 40), (5, 7, 24)),
    "linear without bias": (lambda: nn.Linear(24, 40, bias=False), (7, 24)),
    "linear, one row": (lambda: nn.Linear(24, 40), (1, 24)),
    "linear relu": (lambda: nn.Sequential(nn.Linear(24, 40), nn.ReLU()), (7, 24)),
    "linear gelu": (lambda: nn.Sequential(nn.Linear(24, 40), nn.GELU()), (7, 24)),
    "linear gelu tanh": (lambda: nn.Sequential(nn.Linear(24, 40), nn.GELU("tanh")), (7, 24)),
    "linear leaky": (lambda: nn.Sequential(nn.Linear(24, 40), nn.LeakyReLU(0.2)), (7, 24)),
    "linear tanh": (lambda: nn.Sequential(nn.Linear(24, 40), nn.Tanh()), (7, 24)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1, stride=2), (2, 6, 9, 9)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 9, 9)),
    "conv3d relu": (lambda: nn.Sequential(nn.Conv3d(6, 8, 3), nn.ReLU()), (2, 6, 5, 5, 5)),
}


@cache
def captured(name):
    """A model, its input and its graph, for ranges of both kinds."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape) + 0.5
    return model, x, octavo.capture(model, x)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_computes_what_the_oracle_does(name, per_token):
    model, x, graph = captured(name)
    qconfig = octavo.dynamic_qconfig(TARGET, per_token=per_token)
    mapping = octavo.QConfigMapping().set_global(qconfig)
    for op in ("conv1d", "conv2d", "conv3d"):
        mapping.set_object_type(op, qconfig)
    with captured_as(graph):
        q = octavo.quantize(model, x, mode="dynamic", qconfig=mapping, target=TARGET)
    kernels = q.lowered.kernels.values()
    assert kernels
    how = "per token" if per_token and name.startswith("linear") else "dynamic"
    assert all(kernel.endswith(f", {how}") for kernel in kernels)
    assert not q.lowered.fallbacks
    with torch.no_grad():
        expected = model(x)
    exact = q.lower("reference")(x)
    assert sqnr_db(expected, exact) > 28
    # A value within a 10,000th of a step of the middle between two integers may go the other way.
    assert sqnr_db(exact, q(x)) > 55


def test_the_range_is_that_of_each_call():
    q = octavo.quantize(nn.Linear(8, 8), torch.randn(4, 8), target=TARGET)
    for factor in (1e-3, 1.0, 1e3):
        x = torch.randn(4, 8) * factor
        exact = q.lower("reference")(x)
        assert sqnr_db(exact, q(x)) > 90


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 8), torch.full((3, 8), 2.5), -torch.rand(3, 8)], ids=["0", "c", "<0"]
)
def test_constants_and_one_sided_inputs(x):
    q = octavo.quantize(nn.Linear(8, 8), torch.randn(4, 8), target=TARGET)
    assert torch.allclose(q.lower("reference")(x), q(x), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: Recurrent(nn.LSTM(8, 8))])
def test_integers_of_more_than_a_byte_are_read_as_floats(make):
    """Kernels that read integers store a byte of each."""
    spec = octavo.QSpec(octavo.Scheme("int16", symmetric=True))
    qconfig = octavo.QConfig(spec, octavo.dynamic_qconfig().weight)
    x = torch.randn(4, 5, 8)
    q = octavo.quantize(make().eval(), x, mode="dynamic", qconfig=qconfig, target=TARGET)
    assert sqnr_db(q.lower("reference")(x), q(x)) > 70


def test_signed_integers_too():
    spec = octavo.QSpec(octavo.Scheme("int8", symmetric=True, reduce_range=True))
    qconfig = octavo.QConfig(spec, octavo.dynamic_qconfig().weight)
    q = octavo.quantize(nn.Linear(8, 8), torch.randn(4, 8), qconfig=qconfig)
    x = torch.randn(16, 8)
    assert sqnr_db(q.lower("reference")(x), q(x)) > 90
    assert not q.lowered.fallbacks


ROWS = {
    "several": torch.randn(6, 24, generator=torch.Generator().manual_seed(1)) + 0.5,
    "one": torch.randn(1, 24, generator=torch.Generator().manual_seed(2)),
    "no batch": torch.randn(24, generator=torch.Generator().manual_seed(3)),
    "zeros": torch.zeros(3, 24),
    "one-sided": torch.tensor([[1.0], [-2.0], [0.0], [1e-30]]) * torch.ones(4, 24),
    "none": torch.zeros(0, 24),
}
BEFORE = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "relu, moved": lambda: nn.Sequential(nn.ReLU(), nn.Unflatten(-1, (1, 24)), nn.Flatten(-2)),
    "gelu": nn.GELU,
    "identity": nn.Identity,
}
SCHEMES = {
    "affine": octavo.Scheme("uint8", per_token=True),
    "int8": octavo.Scheme("int8", per_token=True),
    "symmetric": octavo.Scheme("int8", symmetric=True, per_token=True),
    "few bits": octavo.Scheme("uint4", per_token=True),
}


@cache
def before_a_layer(before, rows):
    """A function before a layer, rows that it is called with and its graph, for all schemes."""
    model, sample = nn.Sequential(BEFORE[before](), nn.Linear(24, 40)).eval(), ROWS[rows]
    sample = torch.cat([sample, sample]) if sample.dim() == 2 else sample
    return model, sample, octavo.capture(model, sample)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("before", BEFORE)
def test_rows_that_are_never_negative_and_others(before, scheme):
    """What has no zero point of its own takes a shorter way, as does a row alone."""
    torch.manual_seed(0)
    qconfig = octavo.QConfig(octavo.QSpec(SCHEMES[scheme]), octavo.dynamic_qconfig(TARGET).weight)
    several = {name: x for name, x in ROWS.items() if x.dim() == 2}
    for rows in (several, {"no batch": ROWS["no batch"]}):
        model, sample, graph = before_a_layer(before, next(iter(rows)))
        with captured_as(graph):
            q = octavo.quantize(model, sample, qconfig=qconfig, target=TARGET, progress=False)
        assert next(iter(q.lowered.kernels.values())).endswith("per token")
        for x in rows.values():
            expected, got = q.lower("reference")(x), q(x)
            assert got.shape == expected.shape
            assert torch.allclose(expected, got, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_that_becomes_nan_inside_is_nan(rows):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x.log())

    q = octavo.quantize(Net(), torch.rand(4, 8) + 0.5, target=TARGET, progress=False)
    x = torch.rand(rows, 8) + 0.5
    x[0, 0] = -1.0
    got = q(x)
    assert got[0].isnan().all()
    assert got[1:].isfinite().all()


def test_layers_that_read_one_tensor_share_its_rounding():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            return self.q(x) + self.k(x) * self.v(x)

    q = octavo.quantize(Heads(), torch.randn(4, 8), target=TARGET)
    rounded = [n for n in q.graph.nodes if n.short_op == "fake_quantize_dynamic"]
    assert [node.name for node in rounded] == ["x.dynamic"]


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)),
    "attention": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "recurrent": lambda: Recurrent(nn.GRU(16, 16, batch_first=True)),
}


@cache
def quantized(name):
    """A model and its input, for all runtimes."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, 16)
    return octavo.quantize(MODELS[name]().eval(), x, target=TARGET, progress=False), x


@pytest.mark.parametrize("runtime", ["reference", "torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_its_neighbours(name, runtime):
    if runtime not in ("reference", "torch"):
        pytest.importorskip(runtime)
    q, x = quantized(name)
    q = q.lower(runtime)
    other = x * torch.tensor([1.0, 1000.0, 1.0, 0.01]).reshape(4, 1, 1)
    expected, got = q(x), q(other)
    for sample in (0, 2):
        assert torch.equal(got[sample], expected[sample])
        assert sqnr_db(expected[sample], q(x[sample : sample + 1])[0]) > 40


def test_per_token_rows_have_scales_of_their_own():
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False)
    x = torch.randn(8, 64) * torch.logspace(-2, 2, 8)[:, None]
    qconfigs = [octavo.dynamic_qconfig(TARGET, per_token=on) for on in (False, True)]
    tensor, token = (octavo.quantize(model, x, qconfig=c, target=TARGET) for c in qconfigs)
    with torch.no_grad():
        expected = model(x)[0]
    assert sqnr_db(expected, tensor(x)[0]) < 3
    assert sqnr_db(expected, token(x)[0]) > 30
    assert not token.lowered.fallbacks
    assert sqnr_db(token.lower("reference")(x), token(x)) > 90
    assert next(iter(token.lowered.kernels.values())).endswith("per token")


def test_cells():
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        model, x = kind(8, 16), torch.randn(3, 8)
        q = octavo.quantize(model, x, target=TARGET)
        with torch.no_grad():
            expected, got = model(x), q(x)
        first, other = (r[0] if isinstance(r, tuple) else r for r in (expected, got))
        assert sqnr_db(first, other) > 25


@pytest.mark.parametrize("per_token", [False, True])
def test_octavos_kernel_takes_linear_layers_where_it_is_the_quicker(per_token):
    """With VNNI, unless an activation stands behind that torch's kernel applies itself."""
    torch.manual_seed(0)
    x, net = torch.randn(9, 20), nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 5))
    qconfig = octavo.dynamic_qconfig(TARGET, per_token=per_token)
    q = octavo.quantize(net.eval(), x, mode="dynamic", qconfig=qconfig, target=TARGET)
    kernels = lower_to(q.graph, "python").kernels
    own = library.instruction_set() in ("avx512_vnni", "amx")
    words = "per token" if per_token else "dynamic"
    name = f"{'native' if per_token else 'octavo'}.linear, {words}"
    assert (kernels["2"] == name) == own
    assert (kernels["0"] == name) == (own and per_token)
    for rows in (1, 9, 40):
        y = torch.randn(rows, 20)
        assert sqnr_db(q.lower("reference")(y), q(y)) > 60
    before = {n: t.clone() for n, t in q.graph.constants.items() if t.dtype == torch.int8}
    for name, unpack in lower_to(q.graph, "python").prepacked.items():
        assert unpack().equal(before[name])
