"""What a prepared model is made of, what it refuses, and in what words."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from capturing import captured_as, traced_as
from decibel import sqnr_db
from sweeping import swept
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import octavo
from octavo import MinMax, QConfig, QConfigMapping, QSpec, Scheme
from octavo.errors import CalibrationError, InputError, OctavoError, PlanError, TrainingError
from octavo.graph.capture.capture import traced
from octavo.graph.evaluation import evaluating
from octavo.graph.graph import Graph
from octavo.qat import QATModel

WEIGHT = QSpec(Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True), MinMax())


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))
        return result


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 6, 6)


def prepared(x: Tensor, **settings: object) -> QATModel:
    return octavo.prepare_qat(Classifier(), x, **settings)  # type: ignore[arg-type]


def scales(qat: QATModel) -> dict[str, tuple[Tensor, Tensor]]:
    return {n: (p.scale.clone(), p.zero_point.clone()) for n, p in qat.qparams().items()}


def step(qat: nn.Module, x: Tensor) -> Tensor:
    """One step of training, and its loss."""
    loss = qat(x).square().mean()
    loss.backward()
    torch.optim.SGD([p for p in qat.parameters() if p.requires_grad], 0.05).step()
    qat.zero_grad()
    return loss.detach()  # type: ignore[no-any-return]


def test_a_model_that_was_never_trained_is_not_converted(x: Tensor) -> None:
    with pytest.raises(CalibrationError, match="tensor 'x' is not known: train for a step, or"):
        octavo.convert(prepared(x))


def test_before_the_first_step_evaluation_rounds_weights_alone(x: Tensor) -> None:
    """A trainer's sanity check evaluates then (Lightning); what it gives is said."""
    net = Classifier().eval()
    qat = octavo.prepare_qat(net, x).eval()
    with pytest.warns(octavo.OctavoWarning, match=r"3 of 3 activations have no range yet.*'x'"):
        y = qat(x)
    assert 30 < sqnr_db(net(x), y) < 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sqnr_db(net(x), qat.fake_quantize(False)(x)) > 100
        qat.fake_quantize().train()(x)
        assert sqnr_db(net(x), qat.eval()(x)) < 60


def test_without_a_trainable_parameter_there_is_nothing_to_train(x: Tensor) -> None:
    net = Classifier().requires_grad_(False)
    with pytest.raises(TrainingError, match=r"all parameters are frozen .* octavo\.quantize"):
        octavo.prepare_qat(net, x)
    net.fc.bias.requires_grad_(True)
    trained = [n for n, p in octavo.prepare_qat(net, x).named_parameters() if p.requires_grad]
    assert trained == ["fc.bias"]


def test_a_batch_norm_needs_more_than_one_value() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    qat = octavo.prepare_qat(net, torch.randn(8, 4))
    message = r"batch norm '1' cannot train on a batch of shape \[1, 3\].*drop_last=True"
    with pytest.raises(TrainingError, match=message):
        qat(torch.randn(1, 4))
    qat(torch.randn(2, 4))
    assert qat.freeze_batch_norms()(torch.randn(1, 4)).shape == (1, 3)
    assert qat.freeze_batch_norms(False).eval()(torch.randn(1, 4)).shape == (1, 3)


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
@pytest.mark.parametrize("target", ["x86", "arm", "edge"])
@pytest.mark.parametrize("name", ["conv.weight", "fc.weight"])
def test_a_weight_that_is_no_number_any_more(
    x: Tensor, name: str, target: str, learned: bool
) -> None:
    """It is named, all scales are finite, and with the weight mended training goes on."""
    qat = prepared(x, target=target, calibration=[x], learned_scales=learned)
    step(qat, x)
    qat.freeze_batch_norms()
    weight = qat.get_parameter(name)
    good = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[3] = math.nan
    with pytest.raises(TrainingError, match=f"weight '{name}' has a NaN in it, and is the first"):
        qat(x)
    with torch.no_grad():
        weight.copy_(good)
    assert all(bool(torch.isfinite(scale).all()) for scale, _ in scales(qat).values())
    assert math.isfinite(step(qat, x))


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
def test_an_input_that_is_no_number(x: Tensor, learned: bool) -> None:
    qat = prepared(x, calibration=[x], learned_scales=learned)
    bad = x.clone()
    bad[0, 0, 0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"activation 'x' has a NaN.*look for a NaN in the dat"):
        qat(bad)
    # Its own range, and with it all that does not depend on other values of the batch.
    fresh = octavo.prepare_qat(Classifier(), x, calibration=[x], learned_scales=learned)
    assert torch.equal(qat.qparams()["x"].scale, fresh.qparams()["x"].scale)
    assert all(bool(torch.isfinite(scale).all()) for scale, _ in scales(qat).values())


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
@pytest.mark.parametrize("where", ["x", "conv.weight"])
def test_a_step_that_is_refused_changes_no_scale(x: Tensor, where: str, learned: bool) -> None:
    """As its error says; so who leaves out a batch can go on with the next."""
    qat = prepared(x, calibration=[x], learned_scales=learned)
    step(qat, x)
    before, weight, bad = scales(qat), qat.get_parameter("conv.weight"), 2 * x
    good = weight.detach().clone()
    with torch.no_grad():
        (bad if where == "x" else weight)[0, 0, 0, 0] = math.nan
    with pytest.raises(
        TrainingError, match=f"'{where}' has a NaN.* scales and running statistics are as they were"
    ):
        qat(bad)
    with torch.no_grad():
        weight.copy_(good)
    after = scales(qat)
    for tensor, (scale, zero_point) in before.items():
        assert torch.equal(after[tensor][0], scale), tensor
        assert torch.equal(after[tensor][1], zero_point), tensor
    assert math.isfinite(step(qat, x))


def test_a_nan_that_evaluation_met_does_not_stop_a_later_training(x: Tensor) -> None:
    qat = prepared(x, calibration=[x])
    good = copy.deepcopy(qat.state_dict())
    with torch.no_grad():
        qat.get_parameter("fc.weight").fill_(math.nan)
        qat.eval()(x)
    qat.load_state_dict(good)
    assert math.isfinite(step(qat.train(), x))


def test_a_tensor_of_which_no_number_was_seen_has_no_range(x: Tensor) -> None:
    qat = prepared(x)
    qat(torch.full_like(x, math.inf))
    with pytest.raises(OctavoError, match="'x'"):
        octavo.convert(qat)


@pytest.mark.parametrize("attribute", ["plan", "qconfig"])
def test_a_plan_cannot_be_exchanged(x: Tensor, attribute: str) -> None:
    qat = prepared(x)
    before = qat.plan
    with pytest.raises(PlanError, match=r"keeps its plan.*Prepare the float model again"):
        setattr(qat, attribute, octavo.qat_qconfig())
    assert qat.plan is before


def test_a_prepared_model_is_not_prepared_again(x: Tensor) -> None:
    with pytest.raises(PlanError, match=r"prepared already: train it, or prepare the float model"):
        octavo.prepare_qat(prepared(x), x)


@pytest.mark.parametrize("settings", [{"calibration": True}, {"mode": "weight_only"}])
def test_a_prepared_model_is_not_quantized_but_converted(
    x: Tensor, settings: dict[str, object]
) -> None:
    qat = prepared(x, calibration=[x])
    if "calibration" in settings:
        settings = {"calibration": [x]}
    with pytest.raises(PlanError, match=r"prepared for training.*octavo\.convert"):
        octavo.quantize(qat, x, **settings)  # type: ignore[arg-type]


def test_learned_scales_start_from_something(x: Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"learned scales start from .* calibration=loader"):
        prepared(x, learned_scales=True)
    with pytest.raises(CalibrationError, match="the iterable is empty"):
        prepared(x, learned_scales=True, calibration=[])
    learned = prepared(x, learned_scales=True, mode="weight_only")  # a weight needs no data
    assert [n for n, _ in learned.named_parameters() if "scale" in n] == [
        "fake_quantizers.fc/weight.scale"
    ]


@pytest.mark.parametrize("which", ["activation", "weight"])
def test_a_power_of_two_is_not_learned(x: Tensor, which: str) -> None:
    config = octavo.qat_qconfig()
    spec = getattr(config, which)
    spec = replace(spec, scheme=replace(spec.scheme, power_of_two=True))
    config = replace(config, **{which: spec})
    name = {"activation": "x", "weight": "conv.weight"}[which]
    message = f"'{name}' has a power-of-two scale.*learned_scales, or power_of_two"
    with pytest.raises(PlanError, match=message):
        prepared(x, qconfig=config, calibration=[x], learned_scales=True)
    qat = prepared(x, qconfig=config)  # observed, it can be trained
    step(qat, x)
    logs = torch.log2(qat.qparams()[name].scale)
    assert torch.equal(logs, logs.round())


def test_a_module_of_the_name_that_is_taken() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fake_quantizers = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fake_quantizers(x)
            return result

    with pytest.raises(PlanError, match=r"a module named 'fake_quantizers'.*rename it"):
        octavo.prepare_qat(Own(), torch.rand(2, 4))


def test_modules_may_be_called_like_attributes_of_the_model() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plan, self.target, self.signature = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.signature(self.target(torch.tanh(self.plan(x))))
            return result

    x = torch.randn(3, 4)
    qat = octavo.prepare_qat(Named(), x)
    first = step(qat, x)
    assert step(qat, x) < first
    assert qat.target == "x86"
    assert octavo.convert(qat)(x).shape == (3, 4)


def test_convert_takes_a_plan_with_a_graph_alone(x: Tensor) -> None:
    qat = prepared(x, calibration=[x])
    with pytest.raises(PlanError, match="has its own plan and qparams: convert it alone"):
        octavo.convert(qat, plan=qat.plan)
    with pytest.raises(PlanError, match="has its own plan and qparams"):
        octavo.convert(qat, qparams=qat.qparams())
    graph = octavo.capture(Classifier().eval(), x)
    with pytest.raises(PlanError, match=r"convert\(graph, plan, qparams\)"):
        octavo.convert(graph)
    with pytest.raises(PlanError, match=r"convert\(graph, plan, qparams\)"):
        octavo.convert(graph, octavo.plan(graph))


def test_something_has_to_be_captured_with(x: Tensor) -> None:
    with pytest.raises(CalibrationError, match="or example_inputs, a tensor"):
        octavo.prepare_qat(Classifier())
    qat = octavo.prepare_qat(Classifier(), calibration=[x])
    assert qat(x).shape == (4, 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target": "z80"}, PlanError, "unknown target 'z80'"),
        ({"mode": "fast"}, PlanError, "mode is 'fast'"),
        (
            {"qconfig": QConfigMapping().set_module_name("cnov", None)},
            PlanError,
            "no module is called 'cnov', as a rule has it; did you mean 'conv'",
        ),
        ({"calibration": [torch.full((2, 3, 6, 6), math.nan)]}, CalibrationError, "batch 0.*NaN"),
    ],
)
def test_what_does_not_fit(
    x: Tensor, settings: dict[str, object], error: type[OctavoError], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepared(x, **settings)


def test_a_call_that_does_not_fit(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"'x' is float32\[4, 2, 6, 6\]"):
        prepared(x)(x[:, :2])


@cache
def captured() -> tuple[nn.Module, Graph, Graph]:
    """A network, and its graphs for `octavo.quantize` and for training."""
    net, x = Classifier().eval(), torch.randn(4, 3, 6, 6)
    return net, octavo.capture(net, x), traced(net, x)


@pytest.mark.parametrize("target", ["x86", "arm", "edge", "openvino"])
def test_the_plan_is_that_of_calibration_but_for_observers(x: Tensor, target: str) -> None:
    net, graph, own = captured()
    with captured_as(graph), traced_as(own):
        q = octavo.quantize(net, calibration=[x], target=target)
        trained = octavo.prepare_qat(net, x, target=target).plan
    assert list(trained.tensors) == list(q.plan.tensors)
    differing = []
    for name, mine in trained.tensors.items():
        theirs = q.plan.tensors[name]
        if mine != theirs:
            assert mine.spec is not None
            assert theirs.spec is not None
            assert mine == replace(theirs, spec=replace(theirs.spec, observer=mine.spec.observer))
            differing.append(name)
    assert "x" in differing
    assert all(trained.tensors[name].kind != "weight" for name in differing)
    for mode in ("dynamic", "weight_only"):
        with captured_as(graph), traced_as(own):
            q = octavo.quantize(net, x, mode=mode, target=target)
            assert octavo.prepare_qat(net, x, mode=mode, target=target).plan == q.plan


def test_evaluation_for_a_while_is_evaluation() -> None:
    """As `octavo.compare` and a teacher's evaluation set it: by flags of the modules."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(16, 8)
    qat = octavo.prepare_qat(net, x, calibration=[x])
    with torch.no_grad():
        expected = qat.eval()(x)
        qat.train()
        with evaluating(qat):
            assert torch.equal(qat(x), expected)
        assert not torch.equal(qat(x), expected)


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.sweep
@pytest.mark.parametrize("make", swept([_linear, Classifier], kept={Classifier}))
def test_a_compiled_model_trains_as_the_plain_one(x: Tensor, make: Callable[[], nn.Module]) -> None:
    torch.compiler.reset()
    plain = octavo.prepare_qat(make(), x, calibration=[x])
    inner = copy.deepcopy(plain)
    compiled = torch.compile(inner, backend="eager")
    for _ in range(2):
        losses = [model(x).square().mean() for model in (plain, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss in losses:
            loss.backward()
    own = dict(inner.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad)
    for name, (scale, zero_point) in scales(plain).items():
        torch.testing.assert_close(inner.qparams()[name].scale, scale)
        assert torch.equal(inner.qparams()[name].zero_point, zero_point)


def test_a_weight_that_is_computed_is_trained_as_it_is_used() -> None:
    """Magnitude and direction of a weight norm are one tensor once captured."""
    net = nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(16, 6)
    qat = octavo.prepare_qat(net, x, calibration=[x])
    trained = {n: p for n, p in qat.named_parameters() if p.requires_grad}
    weights = [n for n, p in trained.items() if p.shape == (5, 6)]
    assert len(weights) == 1
    torch.testing.assert_close(trained[weights[0]].detach(), net[0].weight.detach())
    assert sum(p.numel() for p in trained.values()) == 30 + 5 + 10 + 2
    before = trained[weights[0]].detach().clone()
    losses = [float(step(qat, x)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert not torch.equal(trained[weights[0]], before)
    with torch.no_grad():
        expected = qat.eval()(x)
    q = octavo.convert(qat).lower("reference")
    torch.testing.assert_close(q(x), expected, atol=1e-4, rtol=1e-4)


class Tempered(nn.Module):
    """Attention of which a learned number scales the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.log_scale = nn.Linear(8, 24), nn.Parameter(torch.tensor(-0.5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).chunk(3, -1)
        return ((q @ k.mT) * self.log_scale.exp()).softmax(-1) @ v


def test_a_number_that_scales_attention_is_trained() -> None:
    torch.manual_seed(0)
    qat = octavo.prepare_qat(Tempered(), torch.randn(4, 5, 8))
    qat(torch.randn(4, 5, 8)).square().sum().backward()
    (scale,) = (p for p in qat.parameters() if p.dim() == 0)
    assert scale.grad is not None
    assert scale.grad != 0


def test_a_computed_weight_of_frozen_parts_is_frozen() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    net[0].requires_grad_(False)
    x = torch.randn(4, 6)
    qat = octavo.prepare_qat(net, x)
    assert sum(p.numel() for p in qat.parameters() if p.requires_grad) == 10 + 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_pruned_weights_stay_zero_and_the_others_train(momentum: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.ln_structured(net[3], "weight", 0.25, n=2, dim=1)
    x = torch.randn(8, 3, 6, 6)
    qat = copy.deepcopy(octavo.prepare_qat(net, x, calibration=[x]))
    weights = {n: p.detach().clone() for n, p in qat.named_parameters() if p.dim() > 1}
    assert [int((weight == 0).sum()) for weight in weights.values()] == [54, 48]
    optimizer = torch.optim.SGD(qat.parameters(), 0.1, momentum=momentum, weight_decay=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    for name, before in weights.items():
        after = qat.get_parameter(name).detach()
        assert torch.equal(after == 0, before == 0), name
        assert not torch.isclose(after, before)[before != 0].any()
    graph = octavo.convert(qat).graph
    integers = {n: t for n, t in graph.constants.items() if t.dtype == torch.int8}
    for name, before in weights.items():
        assert int((integers[name] == 0).sum()) >= int((before == 0).sum())
        assert integers[name][before == 0].abs().max() == 0


class OfWeights(nn.Module):
    """A product with what is computed of a weight and of a mask."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.compute = nn.Parameter(torch.randn(6, 6) / 3), compute
        self.register_buffer("mask", torch.arange(36).reshape(6, 6) % 5 < 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.compute(self.weight, self.mask)


@pytest.mark.parametrize(
    ("compute", "zeros"),
    [
        (lambda weight, mask: weight * mask, 21),
        (lambda weight, mask: torch.where(mask, weight, 0.0), 21),
        (lambda weight, mask: (weight.masked_fill(~mask, 0) * 2).t(), 21),
        (lambda weight, mask: weight.tril(), 15),
        (lambda weight, mask: weight.relu(), 0),
    ],
    ids=["product", "where", "fill", "triangle", "no mask"],
)
def test_what_is_masked_stays_so(compute: Callable[[Tensor, Tensor], Tensor], zeros: int) -> None:
    torch.manual_seed(0)
    net, x = OfWeights(compute).eval(), torch.randn(8, 6)
    qat = octavo.prepare_qat(net, x, calibration=[x])
    with torch.no_grad():
        assert sqnr_db(net(x), qat.eval()(x)) > 35
    weight = next(qat.parameters())
    before = weight.detach().clone()
    qat.train()(x).square().mean().backward()
    torch.optim.SGD([weight], 0.1).step()
    assert int((weight == before).sum()) == zeros
    assert (before[weight == before] == 0).all()


def test_a_weight_of_zeros_that_is_scaled_is_trained() -> None:
    class Scaled(nn.Module):
        """As a low-rank adapter begins: nothing is masked here."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 6))
            self.register_buffer("scale", torch.full((3, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * self.scale)

    qat = octavo.prepare_qat(Scaled(), torch.randn(4, 6))
    qat(torch.randn(4, 6)).sum().backward()
    (weight,) = qat.parameters()
    assert weight.grad is not None
    assert (weight.grad != 0).all()


class Conv1D(nn.Module):
    """A linear layer whose weight is ``[in, out]``, as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.outputs)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_layer_with_its_weight_the_other_way_round_trains(mode: str) -> None:
    net = nn.Sequential(Conv1D(6, 8), nn.GELU(), Conv1D(8, 6))
    x = torch.randn(4, 5, 6)
    qat = octavo.prepare_qat(net, x, mode=mode)
    losses = [float(step(qat, x)) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        expected = qat.eval()(x)
    q = octavo.convert(qat).lower("reference")
    torch.testing.assert_close(q(x), expected, atol=1e-3, rtol=1e-3)
    assert sum(t.kind == "weight" for t in q.plan.quantized.values()) == 2


def test_the_checkpoint_of_such_a_layer_fits() -> None:
    """A square weight has its shape either way: taken as it is, it would be the wrong matrix."""
    x = torch.randn(4, 5, 6)
    net = Conv1D(6, 6)
    qat = octavo.prepare_qat(Conv1D(6, 6), x, mode="weight_only")
    qat.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(qat.eval()(x), net(x), atol=0.05, rtol=0.05)


class Heads(nn.Module):
    """Contractions with a weight of three axes, and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.randn(6, 2, 4) / 6**0.5)
        self.out = nn.Parameter(torch.randn(6, 8) / 8**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("btd,dhe->bthe", x, self.heads).flatten(2).relu()
        return torch.einsum("bti,oi->bto", y, self.out)


def test_the_weights_of_contractions_train() -> None:
    x = torch.randn(4, 5, 6)
    qat = octavo.prepare_qat(Heads(), x)
    shapes = {name: tuple(weight.shape) for name, weight in qat.named_parameters()}
    assert shapes == {"einsum.right_he": (8, 6), "out": (6, 8)}
    losses = [float(step(qat, x)) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        expected = qat.eval()(x)
    q = octavo.convert(qat).lower("reference")
    torch.testing.assert_close(q(x), expected, atol=1e-3, rtol=1e-3)
    assert sum(t.kind == "weight" for t in q.plan.quantized.values()) == 2


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_are_not_trained_with(bits: int) -> None:
    with pytest.raises(PlanError, match=f"weight_bits is {bits}.*2 to 8 bits"):
        octavo.qat_qconfig(weight_bits=bits)
    with pytest.raises(PlanError, match=f"activation_bits is {bits}.*2 to 8 bits"):
        octavo.qat_qconfig(activation_bits=bits)


def test_observers_of_a_mapping_are_kept(x: Tensor) -> None:
    special = QConfig(QSpec(Scheme("uint8"), octavo.MovingAverageMinMax(0.5)), WEIGHT)
    mapping = QConfigMapping().set_module_name("fc", special)
    specs = {n: t.spec for n, t in prepared(x, qconfig=mapping).plan.quantized.items()}
    assert specs["fc.weight"] == WEIGHT
    assert specs["x"] == octavo.qat_qconfig().activation
