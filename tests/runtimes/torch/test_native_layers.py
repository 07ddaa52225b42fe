"""What Octavo's own kernels run of a model: whole networks in one call, the oracle's integers."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import octavo
from benchmarks import layers
from octavo.graph.graph import Graph, Ref
from octavo.graph.program import run_of
from octavo.numerics.native import library
from octavo.runtimes import cpu
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch import int8, native_convolutions
from octavo.runtimes.torch.int8 import lower_to

pytestmark = pytest.mark.skipif(bool(library.obstacle()), reason="no kernels here: make native")


class Excited(nn.Module):
    """A block as MobileNetV3 has it: expansion, depthwise, squeeze and excitation, projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, few = 4 * channels, channels
        self.expand, self.project = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.depth = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, few, 1), nn.Conv2d(few, wide, 1)
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depth(self.act(self.expand(x))))
        share = torch.relu(self.squeeze(self.pool(y)))
        return x + self.project(y * nn.functional.hardsigmoid(self.excite(share)))


class Stacked(nn.Module):
    """Branches that are concatenated, and pooled on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 3, padding=1, dilation=1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], 1)
        return self.pool(y)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Excited(8),
        Stacked(),
        nn.Conv2d(20, 32, 3, padding=2, dilation=2, groups=2),
        nn.SiLU(),
        nn.Conv2d(32, 8, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 20),
        nn.GELU(),
        nn.Linear(20, 5),
    ).eval()


@pytest.fixture(scope="module")
def quantized() -> octavo.QuantizedModel:
    torch.manual_seed(0)
    return octavo.quantize(network(), calibration=[torch.randn(8, 3, 40, 40)], progress=False)


def programs_of(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], object]:
    """The functions of all steps, and what was lowered."""
    functions: list[object] = []
    compile_steps = int8.compile_steps

    def noting(inputs, steps, outputs, constants):
        functions.extend(step.function for step in steps)
        return compile_steps(inputs, steps, outputs, constants)

    monkeypatch.setattr(int8, "compile_steps", noting)
    return functions, lower_to(graph, "python")


def test_a_network_is_one_call(quantized, monkeypatch):
    functions, lowered = programs_of(quantized.graph, monkeypatch)
    assert [type(function) for function in functions] == [Program]
    assert not lowered.fallbacks
    assert all(name.startswith("native.") for name in lowered.kernels.values())


@pytest.mark.parametrize("size", [(1, 3, 40, 40), (3, 3, 33, 57), (2, 3, 64, 16), (0, 3, 40, 40)])
def test_results_are_the_oracles_at_any_size(quantized, size):
    x = torch.randn(size)
    wanted = quantized.lower("reference")(x)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        result = quantized(given)
        assert result.shape == wanted.shape
        assert result.is_contiguous()
        assert (result - wanted).norm() <= 0.05 * wanted.norm()


class Heard(nn.Module):
    """A block as nets of speech have it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.narrow = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.narrow(nn.functional.silu(self.wide(x))))


def test_sequences_are_images_of_one_row(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(5, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        Heard(16, 1),
        Heard(16, 2),
        nn.Conv1d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 3, groups=2),
        nn.Conv1d(32, 7, 1),
    ).eval()
    q = octavo.quantize(net, calibration=[torch.randn(4, 5, 60)], progress=False)
    functions, lowered = programs_of(q.graph, monkeypatch)
    assert [type(function) for function in functions] == [Program]
    assert lowered.kernels["0"] == "native.conv1d"
    weights = {
        n: t for n, t in q.lower("reference").graph.constants.items() if n.endswith("weight")
    }
    assert weights
    assert all(torch.equal(lowered.prepacked[name](), t) for name, t in weights.items())
    for size in ((1, 5, 60), (3, 5, 33), (2, 5, 12)):
        x = torch.randn(size)
        result, wanted = q(x), q.lower("reference")(x)
        assert result.shape == wanted.shape
        assert result.is_contiguous()
        assert (result - wanted).norm() <= 0.05 * wanted.norm()


class Widened(nn.Module):
    """What a U-Net has in its middle: images made smaller, and larger again."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 16, 3, 2, 1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(torch.relu(self.down(x))))
        return torch.relu(self.last(torch.cat([x, y], 1)))


LARGER = {
    "images": (
        (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Widened(), nn.Conv2d(8, 3, 1)),
        (4, 3, 16, 16),
        ("2.up", "2.last"),
    ),
    "sequences": (
        (nn.Conv1d(4, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 6, 4, 2, 1), nn.Conv1d(6, 3, 1)),
        (4, 4, 20),
        ("2",),
    ),
    "volumes": (
        (
            nn.Conv3d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(8, 16, (3, 1, 1), (2, 1, 1), (1, 0, 0)),
            nn.Conv3d(16, 4, 1),
        ),
        (4, 3, 6, 7, 8),
        ("0", "2", "3"),
    ),
}


@pytest.mark.parametrize("case", LARGER)
def test_transposed_convolutions_and_those_of_volumes_are_in_the_call(case, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(native_convolutions, "_torch_takes_all", lambda: False)
    members, size, names = LARGER[case]
    net, x = nn.Sequential(*members).eval(), torch.randn(size)
    q = octavo.quantize(net, calibration=[x], progress=False)
    functions, lowered = programs_of(q.graph, monkeypatch)
    if case != "volumes":  # whose floats torch rounds
        assert [type(function) for function in functions] == [Program]
    for name in names:
        weight = f"{name}.weight"
        assert lowered.kernels[name].startswith(("native.conv_transpose", "native.conv3d")), name
        assert torch.equal(lowered.prepacked[weight](), q.graph.constants[weight])
    for seen in layers.agreements(q.graph, x):
        assert seen.max_step <= 1, seen.name
    wanted = q.lower("reference")(x)
    assert (q(x) - wanted).norm() <= 0.02 * wanted.norm()


def test_all_that_is_rounded_is_the_oracles(quantized):
    """Each value on the oracle's inputs is that of other tests; here no step is lost on the way."""
    graph = quantized.graph
    names = [n.name for n in graph.nodes if n.op == "octavo.quantize.default"]
    every = replace(graph, outputs=[Ref(name) for name in names])
    x = torch.randn(2, 3, 40, 40)
    for name, a, b in zip(names, lower_to(every, "python").run(x), run_of(every)(x), strict=True):
        off = (a.int() - b.int()).abs().double()
        assert off.mean() < 1, name


def test_a_view_that_leaves_the_model_has_its_own_sizes(monkeypatch):
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(self.conv(x))
            return self.head(y), self.head(y[:, :, 1:4].permute(0, 1, 3, 2))

    x = torch.randn(2, 4, 9, 7)
    q = octavo.quantize(Views(), calibration=[x], progress=False)
    for result, wanted in zip(q(x), q.lower("reference")(x), strict=True):
        assert result.shape == wanted.shape
        assert (result - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_a_view_is_not_overwritten_where_its_memory_is_read_again():
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
            self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)  # torch's kernel adds in place

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.stem(x))
            seen = y.permute(0, 2, 3, 1).permute(0, 3, 1, 2)
            return self.head(torch.relu(seen + self.grouped(y))) + self.head(y)

    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8)
    q = octavo.quantize(Viewed(), calibration=[x], progress=False).lower("torch", check=False)
    if not (cpu.saturates() or cpu.missing_kernels() is not None):
        assert q.lowered.kernels["grouped"] == "onednn.qconv2d.sum"
    wanted = q.lower("reference")(x)
    assert (q(x) - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize(
    ("layer", "order"),
    [(nn.Linear(7, 4), torch.contiguous_format), (nn.Conv2d(5, 4, 1), torch.channels_last)],
    ids=["rows", "an image"],
)
def test_four_axes_are_rounded_in_the_order_in_which_they_are_read(layer, order):
    x = torch.randn(2, 5, 6, 7)
    graph = octavo.quantize(layer, calibration=[x], progress=False).graph
    (rounded,) = (n.name for n in graph.nodes if n.op == "octavo.quantize.default")
    both = replace(graph, outputs=[graph.outputs, Ref(rounded)])
    _, integers = lower_to(both, "python").run(x)
    assert integers.is_contiguous(memory_format=order)
    assert torch.equal(integers, run_of(graph, outputs=[rounded])(x)[0])


def test_what_has_no_kernel_stands_between_two_calls(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Softplus(), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 12, 12)
    q = octavo.quantize(model, calibration=[x], progress=False)
    functions, _ = programs_of(q.graph, monkeypatch)
    kinds = [isinstance(function, Program) for function in functions]
    assert kinds == [True, False, True]
    wanted = q.lower("reference")(x)
    assert (q(x) - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_weights_are_held_once_and_given_back(quantized):
    before = {name: tensor.clone() for name, tensor in quantized.graph.constants.items()}
    assert {"0.weight", "4.depth.weight", "12.weight"} <= set(quantized.lowered.prepacked)
    for name, tensor in quantized.graph.constants.items():
        assert torch.equal(tensor, before[name]), name
    again = octavo.quantize(network(), calibration=[torch.randn(2, 3, 40, 40)], progress=False)
    again.load_state_dict(quantized.state_dict())
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(again(x), quantized(x))


def test_models_are_copied_and_pickled(quantized):
    x = torch.randn(1, 3, 40, 40)
    wanted = quantized(x)
    assert torch.equal(copy.deepcopy(quantized)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(quantized))(x), wanted)  # noqa: S301


def test_without_the_library_torchs_kernels_run(quantized, torchs_kernels):
    lowered = quantized.lower("torch").lowered
    assert not any(name.startswith("native.") for name in lowered.kernels.values())


@pytest.mark.parametrize("caller", ["compiler", "package"])
def test_compilers_get_torchs_kernels(quantized, caller):
    lowered = lower_to(quantized.graph, caller)
    assert not any(name.startswith("native.") for name in lowered.kernels.values())


def test_torch_keeps_what_it_runs_quicker():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1))
    q = octavo.quantize(model, calibration=[torch.randn(2, 8, 9, 9)], progress=False)
    refuses = cpu.saturates() or cpu.missing_kernels() is not None
    assert q.lowered.kernels["0"] == ("native.conv2d" if refuses else "onednn.qconv2d")
    assert q.lowered.kernels["2"] == "native.conv2d"
