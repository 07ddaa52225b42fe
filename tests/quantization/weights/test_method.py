"""Weight methods that are added from outside of ``src``: one class each, and nothing else.

Of the rest of the seam this covers too: ``weights/layers.py`` and ``weights/rounding.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, InputError, PlanError
from octavo.numerics.affine import QParams, dequantized, fake_quantize, quantized
from octavo.quantization.weights import Layer, Rounded, WeightMethod

TARGET = octavo.host_target()


@dataclass(frozen=True)
class MeanSquare:
    """``E[x^2]`` of each input channel: the diagonal of the Hessian of a layer's squared error.

    The state: the sum, and how many values each of it is of.
    """

    axis: int

    def update(self, state: tuple[Tensor, int] | None, x: Tensor) -> tuple[Tensor, int]:
        rows = x.movedim(self.axis, -1).flatten(0, -2).double()
        new = rows.square().sum(0), len(rows)
        return new if state is None else self.merge(state, new)

    def merge(self, one: tuple[Tensor, int], other: tuple[Tensor, int]) -> tuple[Tensor, int]:
        return one[0] + other[0], one[1] + other[1]


@dataclass(frozen=True)
class LeastError(WeightMethod):
    """The scale of each output channel at which ``sum E[x^2] (w - w')^2`` is least."""

    name: ClassVar[str] = "least error"
    fractions: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25)

    def fits(self, layer: Layer) -> bool:
        return layer.layout.input_axis is not None and layer.layout.output_axis == 0

    def statistic(self, layer: Layer) -> MeanSquare:
        return MeanSquare(layer.layout.input_axis)

    def round(self, layer: Layer, now: Rounded, seen: tuple[Tensor, int]) -> Rounded:
        mean = (seen[0] / seen[1]).to(layer.weight.dtype)
        out, inputs = layer.weight.shape[:2]
        hessian = mean.reshape(-1, inputs).repeat_interleave(out // (len(mean) // inputs), 0)
        scale, least = now.qparams.scale, torch.full_like(now.qparams.scale, torch.inf)
        for fraction in self.fractions:
            tried = replace(now.qparams, scale=now.qparams.scale * fraction)
            square = (fake_quantize(layer.weight, tried) - layer.weight).square()
            error = (square.flatten(2).sum(2) if square.dim() > 2 else square) * hessian
            scale = torch.where(error.sum(1) < least, tried.scale, scale)
            least = torch.minimum(error.sum(1), least)
        qparams = replace(now.qparams, scale=scale)
        return replace(now, integers=quantized(layer.weight, qparams), qparams=qparams)


@dataclass(frozen=True)
class Gram:
    """``E[x x^T]`` of a linear layer's input: the sum, and of how many rows."""

    def update(self, state: tuple[Tensor, int] | None, x: Tensor) -> tuple[Tensor, int]:
        rows = x.flatten(0, -2).double()
        new = rows.T @ rows, len(rows)
        return new if state is None else self.merge(state, new)

    def merge(self, one: tuple[Tensor, int], other: tuple[Tensor, int]) -> tuple[Tensor, int]:
        return one[0] + other[0], one[1] + other[1]


@dataclass(frozen=True)
class Feedback(WeightMethod):
    """Each column is rounded in turn, and those behind it take up its error (Frantar et al. 2022,
    GPTQ, arXiv:2210.17323, equation 2, without its blocks).
    """

    name: ClassVar[str] = "feedback"
    damping: float = 0.01

    def fits(self, layer: Layer) -> bool:
        return layer.node.short_op == "linear" and layer.scheme.granularity != "per-tensor"

    def statistic(self, layer: Layer) -> Gram:
        return Gram()

    def round(self, layer: Layer, now: Rounded, seen: tuple[Tensor, int]) -> Rounded:
        hessian = seen[0] / seen[1]
        hessian += self.damping * hessian.diagonal().mean() * torch.eye(len(hessian))
        inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
        left, integers = layer.weight.double().clone(), now.integers.clone()
        for column in range(left.shape[1]):
            qparams = of_column(now.qparams, column)
            integers[:, column] = quantized(left[:, column], qparams)
            exact = dequantized(integers[:, column], qparams)
            error = (left[:, column] - exact) / inverse[column, column]
            left[:, column:] -= error[:, None] * inverse[column, column:]
        return replace(now, integers=integers)


def of_column(qparams: QParams, column: int) -> QParams:
    """For a column, in which each value has the scale of its row, or of its group in the row."""
    scheme, scale, zero = qparams.scheme, qparams.scale, qparams.zero_point
    if scheme.group_size is not None:
        group = column // scheme.group_size
        scale, zero = scale[:, group], zero[:, group]
    return QParams(scale, zero, replace(scheme, group_size=None, channel_axis=0))


def weights_config(dtype: str, low: float, high: float) -> octavo.QConfig:
    """Weight-only, with a range that is given."""
    scheme = octavo.Scheme(dtype, symmetric=True, channel_axis=0)
    return octavo.QConfig(None, octavo.QSpec(scheme, octavo.FixedRange(low, high)))


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer.eval()


def weight_of(q: octavo.QuantizedModel, name: str = "weight") -> Tensor:
    graph = q.graph
    node = graph.node(f"{name}.dequantized")
    scheme = q.plan.tensors[name].spec.scheme
    scale, zero = graph.constants[f"{name}_scale"], graph.constants[f"{name}_zero_point"]
    assert node.op.startswith("octavo.dequantize")
    stored = graph.constants[name]
    if scheme.integers.bits <= 4:
        stored = torch.ops.octavo.unpack_int4(stored, list(node.meta.shape), True)
    return dequantized(stored, QParams(scale.flatten(), zero.flatten(), scheme))


def test_a_method_finds_the_scale_that_the_data_asks_for() -> None:
    """With integers from -2 to 1 the scale of [4, 1] is at first 4 / 1.5, which gives [2.67, 0].

    A quarter of it gives [0.67, 0.67]. The errors are 1.33 and 1, and 3.33 and 0.33: the first is
    less by far if both inputs count alike, the second if all that comes in is the second.
    """
    layer = linear([[4.0, 1.0]])
    config = weights_config("int2", -4.0, 4.0)
    methods = [LeastError((1.0, 0.25))]
    found = {}
    for name, x in {
        "alike": torch.tensor([[1.0, 1.0], [-1.0, 1.0]]),
        "second": torch.tensor([[0.01, 1.0], [0.01, 3.0]]),
    }.items():
        q = octavo.quantize(
            layer, calibration=[x], mode="weight_only", qconfig=config, weights=methods
        )
        found[name] = weight_of(q)
    first = 4 / 1.5
    assert torch.allclose(found["alike"], torch.tensor([[first, 0.0]]))
    assert torch.allclose(found["second"], torch.tensor([[first / 4, first / 4]]))


def test_a_method_makes_up_for_one_error_by_another() -> None:
    """Both inputs are the same, and 0.4 + 0.4 is nearer to 0 + 1 than to 0 + 0."""
    layer, x = linear([[0.4, 0.4]]), torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    config = weights_config("int8", -127.5, 127.5)
    q, plain = (
        octavo.quantize(layer, calibration=[x], mode="weight_only", qconfig=config, weights=methods)
        for methods in ([Feedback()], [])
    )
    assert weight_of(q).tolist() == [[0.0, 1.0]]
    assert weight_of(plain).tolist() == [[0.0, 0.0]]


def data(batches: int = 4) -> list[Tensor]:
    """Rows whose inputs depend on each other, and have a mean."""
    torch.manual_seed(1)
    mixing = torch.randn(16, 16) * torch.logspace(0, -2, 16)[:, None]
    return [torch.randn(32, 16) @ mixing + 0.3 for _ in range(batches)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).eval()


def error(q: octavo.QuantizedModel, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((q.lower("reference")(x) - model(x)).norm() / model(x).norm())


@pytest.mark.parametrize("method", [LeastError(), Feedback()], ids=lambda m: m.name)
@pytest.mark.parametrize("mode", ["static", "weight_only"])
def test_it_lessens_the_error_and_runtimes_agree(
    method: WeightMethod, mode: str, tmp_path: Path
) -> None:
    model, batches = net(), data()
    scheme = octavo.Scheme("int4", symmetric=True, channel_axis=0)
    config = octavo.QConfig(
        octavo.static_qconfig(TARGET).activation if mode == "static" else None,
        octavo.QSpec(scheme, octavo.MinMax()),
    )
    kwargs: dict[str, Any] = {"calibration": batches, "qconfig": config, "target": TARGET}
    plain = octavo.quantize(model, mode=mode, **kwargs)
    q = octavo.quantize(model, mode=mode, weights=[method], **kwargs)
    x = torch.cat(batches)
    assert error(q, model, x) < 0.9 * error(plain, model, x)
    names = [method.name, "bias_correction"]
    assert q.provenance["weights"] == ", ".join(names)
    assert f"weights {', '.join(names)}" in str(q.summary())
    runtimes = None if mode == "static" and method == LeastError() else ["torch"]
    assert octavo.verify(q, batches[:1], runtimes=runtimes).passed
    q.save(tmp_path / "q.octavo")
    loaded = octavo.load(tmp_path / "q.octavo")
    assert torch.equal(loaded(x), q(x))
    octavo.layer_errors(model, loaded, batches[:1])  # which compares the weights


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_of_groups(symmetric: bool) -> None:
    model, batches = net(), data()
    config = octavo.weight_only_qconfig(4, group_size=8, symmetric=symmetric)
    kwargs: dict[str, Any] = {"calibration": batches, "mode": "weight_only", "qconfig": config}
    plain, q = (octavo.quantize(model, weights=m, **kwargs) for m in ([], [Feedback()]))
    x = torch.cat(batches)
    assert error(q, model, x) < 0.9 * error(plain, model, x)
    assert octavo.verify(q, batches[:1], runtimes=["torch"]).passed


def test_a_convolution_in_static_int8_and_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 3)
    ).eval()
    batches = [torch.rand(8, 4, 6, 6) for _ in range(2)]
    q = octavo.quantize(model, calibration=batches, target=TARGET, weights=[LeastError()])
    plain = octavo.quantize(model, calibration=batches, target=TARGET)
    assert error(q, model, batches[0]) < 2 * error(plain, model, batches[0]) < 0.1
    assert octavo.verify(q, batches[:1], runtimes=["torch"]).passed


def test_stages_by_hand_are_what_quantize_does_and_halves_merge() -> None:
    model, batches, methods = net(), data(), [LeastError(), octavo.BiasCorrection()]
    graph = octavo.capture(model, batches[0])
    plan = octavo.plan(graph, target=TARGET)
    found = octavo.calibrate(graph, plan, batches, weights=methods, progress=False)
    by_hand = octavo.convert(
        graph, plan, found.qparams, weights=methods, statistics=found.statistics
    )
    q = octavo.quantize(model, calibration=batches, target=TARGET, weights=methods[:1])
    assert_same_constants(by_hand, q)
    one, other = (octavo.Calibration(graph, plan, methods) for _ in range(2))
    for index, x in enumerate(batches):
        (one, other)[index % 2].observe([x])
    one.merge(other)
    merged = one.result().statistics
    assert merged.keys() == found.statistics.keys()
    key = ("input", MeanSquare(-1))
    expected = torch.cat(batches).double().square().mean(0)
    for total, count in (merged[key], found.statistics[key]):
        assert count == 128
        assert torch.allclose(total / count, expected)


def assert_same_constants(one: octavo.QuantizedModel, other: octavo.QuantizedModel) -> None:
    ours, theirs = one.graph.constants, other.graph.constants
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_methods_apply_in_order_and_the_bias_sees_the_last_integers() -> None:
    """Bias correction behind a method makes the mean right, before it that of other integers."""
    model, batches = nn.Sequential(net()[0]), data()
    x = torch.cat(batches)
    graph = octavo.capture(model, x)
    plan = octavo.plan(graph, octavo.QConfigMapping().set_global(coarse()), target=TARGET)
    off = {}
    for name, methods in {
        "behind": [Feedback(), octavo.BiasCorrection()],
        "before": [octavo.BiasCorrection(), Feedback()],
    }.items():
        found = octavo.calibrate(graph, plan, batches, weights=methods, progress=False)
        q = octavo.convert(graph, plan, found.qparams, weights=methods, statistics=found.statistics)
        weight, bias = weight_of(q, "0.weight"), q.graph.constants["0.bias"]
        with torch.no_grad():
            off[name] = float((x @ weight.T + bias - model(x)).mean(0).norm())
    assert 3 * off["behind"] < off["before"]


def coarse() -> octavo.QConfig:
    weight = octavo.QSpec(octavo.Scheme("int4", symmetric=True, channel_axis=0), octavo.MinMax())
    return octavo.QConfig(octavo.static_qconfig(TARGET).activation, weight)


class Twice(nn.Module):
    """A layer that is called twice, on other data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu() * 3)


@dataclass(frozen=True)
class Watching(LeastError):
    """Notes what it is given."""

    log: ClassVar[dict[str, tuple[Tensor, int]]] = {}

    def round(self, layer: Layer, now: Rounded, seen: tuple[Tensor, int]) -> Rounded:
        self.log[layer.name] = seen
        return super().round(layer, now, seen)

    def bias(self, layer: Layer, now: Rounded, seen: tuple[Tensor, int]) -> Tensor | None:
        self.log[f"bias of {layer.name}"] = seen
        return now.bias


def test_a_shared_weight_is_rounded_for_all_that_read_it() -> None:
    model, batches = Twice().eval(), data()
    q = octavo.quantize(model, calibration=batches, target=TARGET, weights=[Watching()])
    x = torch.cat(batches)
    with torch.no_grad():
        inner = model.layer(x).relu() * 3
    first, second = (t.double().square().sum(0) for t in (x, inner))
    seen = {name: state[0] for name, state in Watching.log.items()}
    layers = [node.name for node in q.graph.nodes if node.short_op == "linear"]
    assert len(layers) == 2
    for layer, own in zip(layers, (first, second), strict=True):
        assert torch.allclose(seen[layer], first + second)
        assert torch.allclose(seen[f"bias of {layer}"], own)
    assert octavo.verify(q, batches[:1], runtimes=["torch"]).passed


def test_a_layer_without_a_bias_gets_none_unless_a_method_gives_one() -> None:
    model, batches = nn.Sequential(nn.Linear(16, 4, bias=False)).eval(), data(1)
    kwargs: dict[str, Any] = {"calibration": batches, "target": TARGET, "bias_correction": False}
    for methods, biases in (([], 0), ([octavo.BiasCorrection()], 1)):
        q = octavo.quantize(model, weights=methods, **kwargs)
        assert sum(name.endswith("bias") for name in q.graph.constants) == biases


class NoBias(WeightMethod):
    name = "no bias"

    def bias(self, layer: Layer, now: Rounded, seen: None) -> None:
        return None


def test_a_method_may_take_a_bias_away() -> None:
    q = octavo.quantize(
        net(), calibration=data(1), target=TARGET, weights=[NoBias()], bias_correction=False
    )
    assert not any(name.endswith("bias") for name in q.graph.constants)
    assert octavo.verify(q, data(1), runtimes=["torch"]).passed


class Everything(WeightMethod):
    """Fits all weights, and looks at no data."""

    name = "halves"

    def round(self, layer: Layer, now: Rounded, seen: None) -> Rounded:
        qparams = replace(now.qparams, scale=now.qparams.scale * 2)
        return replace(now, integers=quantized(layer.weight, qparams), qparams=qparams)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(10, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(tokens))[0])


def test_tables_and_recurrent_layers_have_weights_too_and_need_no_data() -> None:
    tokens = torch.randint(0, 10, (3, 5))
    model = Recurrent().eval()
    kwargs: dict[str, Any] = {"mode": "weight_only", "target": TARGET}
    plain = octavo.quantize(model, tokens, **kwargs).graph.constants
    q = octavo.quantize(model, tokens, weights=[Everything()], **kwargs).graph.constants
    scales = [name for name in plain if name.endswith("_scale")]
    assert len(scales) == 4  # the table, two of the LSTM, the head
    assert all(torch.equal(q[name], 2 * plain[name]) for name in scales)


def test_the_same_as_sensitivity_studies_it() -> None:
    model, batches = net(), data()
    kwargs: dict[str, Any] = {"calibration": batches, "qconfig": coarse(), "target": TARGET}
    found = octavo.sensitivity(model, data=batches, weights=[Feedback()], progress=False, **kwargs)
    q = octavo.quantize(model, weights=[Feedback()], **kwargs)
    decibels = -20 * torch.log10(torch.tensor(error(q, model, torch.cat(batches))))
    assert found.quantized_db == pytest.approx(float(decibels), abs=0.1)


class Gives(WeightMethod):
    """What is no weight of the layer."""

    name = "wrong"

    def __init__(self, rounded: Any = None, bias: Any = None) -> None:
        self.rounded, self.given = rounded, bias

    def round(self, layer: Layer, now: Rounded, seen: None) -> Any:
        return now if self.rounded is None else self.rounded(now)

    def bias(self, layer: Layer, now: Rounded, seen: None) -> Tensor | None:
        return self.given


WRONG = {
    "range": (
        Gives(lambda now: replace(now, integers=now.integers.to(torch.int32) + 200)),
        "'0' integers and scales of .* expected .*, from -127 to 127",
    ),
    "shape": (
        Gives(lambda now: replace(now, integers=now.integers[:1])),
        r"integers and scales of .*\(1, 16\).* expected .*\(24, 16\)",
    ),
    "scale": (
        Gives(lambda now: replace(now, qparams=replace(now.qparams, scale=torch.tensor(1.0)))),
        r"\(24, 16\), \(\)\] .* expected .*\(24, 16\), \(24,\)\]",
    ),
    "kind": (Gives(lambda now: now.integers), r"a Tensor; round\(\) has to return a Rounded"),
    "bias": (Gives(bias=torch.zeros(3)), r"'0' a bias of shape \[3\]; expected \[24\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_weight_of_the_layer_is_refused(name: str) -> None:
    method, message = WRONG[name]
    with pytest.raises(PlanError, match=f"the weight method 'wrong' gave .*{message}"):
        octavo.quantize(net(), data(1)[0], mode="weight_only", weights=[method])


def test_bias_correction_is_applied_once() -> None:
    kwargs: dict[str, Any] = {"calibration": data(), "qconfig": coarse(), "target": TARGET}
    plain = octavo.quantize(net(), **kwargs)
    given = octavo.quantize(net(), weights=[octavo.BiasCorrection()], **kwargs)
    assert given.provenance == plain.provenance
    assert_same_constants(given, plain)


class Nameless(WeightMethod):
    pass


def test_what_a_method_wants_has_to_be_measured() -> None:
    model, batches = net(), data(1)
    with pytest.raises(CalibrationError, match="the weight methods need calibration data"):
        octavo.quantize(model, batches[0], mode="weight_only", weights=[LeastError()])
    with pytest.raises(CalibrationError, match="the iterable is empty"):
        octavo.quantize(model, batches[0], calibration=[], mode="weight_only", weights=[Feedback()])
    graph = octavo.capture(model, batches[0])
    plan = octavo.plan(graph)
    found = octavo.calibrate(graph, plan, batches, progress=False)
    with pytest.raises(CalibrationError, match=r"'feedback' needs Gram\(\) of the tensor 'input'"):
        octavo.convert(
            graph, plan, found.qparams, weights=[Feedback()], statistics=found.statistics
        )


@pytest.mark.parametrize(
    "given", ["feedback", Feedback(), [Feedback], ["feedback"], [Nameless()], None]
)
def test_other_things_than_methods_are_refused(given: Any) -> None:
    for call in (
        lambda: octavo.quantize(net(), calibration=data(1), weights=given),
        lambda: octavo.sensitivity(net(), calibration=data(1), data=data(1), weights=given),
    ):
        with pytest.raises(InputError, match=r"weights is .*: give a list of weight methods"):
            call()
