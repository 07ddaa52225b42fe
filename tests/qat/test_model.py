"""What is trained is what is deployed: names, values, modes."""

from __future__ import annotations

import copy
import io
from functools import cache
from typing import Any

import pytest
import torch
from capturing import traced_as
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import ExportError, TrainingError
from octavo.graph.capture.capture import traced
from octavo.graph.graph import Graph
from octavo.qat import QATModel

HOST = octavo.host_target()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.bn(self.conv(x)))
        x = functional.max_pool2d(x, 2)
        result: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return result


class Concatenation(nn.Module):
    """Two convolutions whose results share a scale, clipped, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.b = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.c, self.fc = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.avg_pool2d(self.c(torch.cat([self.a(x), self.b(x)], 1)), 2)
        result: Tensor = self.fc(functional.adaptive_avg_pool2d(y, 1).flatten(1))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, dropout=0.3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.tanh(self.table(x)))
        return result


def _layer_and_norm(layer: nn.Module, norm: nn.Module) -> nn.Module:
    return nn.Sequential(layer, norm, nn.ReLU())


MODELS = {
    "conv1d": (lambda: _layer_and_norm(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 4, 9)),
    "conv2d": (lambda: _layer_and_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 4, 9, 9)),
    "conv3d": (lambda: _layer_and_norm(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), (4, 4, 5, 5, 5)),
    "grouped": (
        lambda: _layer_and_norm(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)),
        (4, 4, 9, 9),
    ),
    "linear": (lambda: _layer_and_norm(nn.Linear(4, 6), nn.BatchNorm1d(6)), (8, 4)),
    "transposed": (
        lambda: _layer_and_norm(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
        (4, 4, 5, 5),
    ),
    "transposed, grouped": (
        lambda: _layer_and_norm(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)),
        (4, 4, 7),
    ),
    "without affine": (
        lambda: _layer_and_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
        (4, 4, 9, 9),
    ),
    "residual": (Residual, (4, 3, 8, 8)),
    "concatenation": (Concatenation, (4, 3, 8, 8)),
    "recurrent": (Recurrent, (4, 5, 6)),
    "attention": (Attention, (4, 7, 8)),
}


@cache
def _known(name: str) -> tuple[nn.Module, Tensor, Graph]:
    """A model whose batch norms know the data, and its graph."""
    make, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = make(), torch.randn(shape)
        with torch.no_grad():
            for _ in range(20):
                net(x + 0.3 * torch.randn(shape))
    return net, x, traced(net, (x,))


def _made(name: str) -> tuple[nn.Module, Tensor]:
    """A model of one's own, and its data."""
    net, x, _ = _known(name)
    return copy.deepcopy(net), x


def _prepared(name: str, *config: Any, **how: Any) -> tuple[QATModel, Tensor]:
    """The model for training, and its data; captured once for all the ways to prepare it."""
    net, x, graph = _known(name)
    with traced_as(graph):
        return octavo.prepare_qat(net, x, *config, **how), x


def _trained(qat: QATModel, x: Tensor, steps: int = 6) -> QATModel:
    """A few steps that move every parameter and statistic."""
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    for _ in range(steps):
        loss = qat(x + 0.3 * torch.randn(x.shape)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return qat


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
@pytest.mark.parametrize("name", MODELS)
def test_the_converted_model_computes_what_evaluation_computes(name: str, learned: bool) -> None:
    data = [_known(name)[1]] if learned else None
    qat, x = _prepared(name, target="x86", calibration=data, learned_scales=learned)
    before = {n: p.detach().clone() for n, p in qat.named_parameters()}
    _trained(qat, x)
    moved = [n for n, p in qat.named_parameters() if not torch.equal(p, before[n])]
    still = set(before) - set(moved)
    assert all("bias" in n for n in still), still  # a bias before a batch norm has no gradient
    qat.eval()
    q = octavo.convert(qat).lower("reference")
    wide = 3 * torch.randn(x.shape)
    with torch.no_grad():
        assert torch.equal(qat(x), q(x))
        assert torch.equal(qat(wide), q(wide))
    assert q.summary().int8 > 0


@pytest.mark.parametrize("target", ["x86-avx2", "arm", "edge", "openvino"])
@pytest.mark.parametrize("name", ["residual", "concatenation", "transposed", "attention"])
def test_so_it_does_for_every_target(name: str, target: str) -> None:
    qat, x = _prepared(name, target=target)
    _trained(qat, x).eval()
    with torch.no_grad():
        assert torch.equal(qat(x), octavo.convert(qat).lower("reference")(x))


@pytest.mark.parametrize("layer", ["fc", "conv", "stem.0"])
def test_a_layer_in_bfloat16_trains_and_evaluates_in_it(layer: str) -> None:
    mapping = octavo.QConfigMapping().set_module_name(layer, torch.bfloat16)
    qat, x = _prepared("residual", mapping)
    _trained(qat, x).eval()
    assert [t.tensor for t in qat.plan.tensors.values() if t.runs == "bfloat16"] == [layer]
    with torch.no_grad():
        expected = qat(x)
        assert torch.equal(expected, octavo.convert(qat).lower("reference")(x))
        if layer == "fc":
            assert torch.equal(expected, expected.to(torch.bfloat16).float())


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
@pytest.mark.parametrize("name", ["residual", "recurrent", "attention"])
def test_modes_without_ranges_train_too(name: str, mode: str) -> None:
    qat, x = _prepared(name, mode=mode)
    _trained(qat, x).eval()
    q = octavo.convert(qat).lower("reference")
    assert q.plan.mode == mode
    with torch.no_grad():
        assert torch.equal(q(x), qat(x))


@pytest.mark.parametrize("bits", range(2, 9))
def test_any_bits_from_two_to_eight(bits: int) -> None:
    config = octavo.qat_qconfig("x86", weight_bits=bits, activation_bits=bits)
    qat, x = _prepared("residual", config)
    _trained(qat, x).eval()
    q = octavo.convert(qat).lower("reference")
    levels = q.graph.constants["fc.weight"] if bits > 4 else None
    if levels is not None:
        assert int(levels.max()) <= 2 ** (bits - 1) - 1
        assert int(levels.min()) >= -(2 ** (bits - 1))
    with torch.no_grad():
        assert torch.equal(qat(x), q(x))


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
@pytest.mark.parametrize("kind", ["conv2d", "transposed", "transposed, grouped", "linear", "alone"])
def test_channels_without_weights_are_deployed_as_they_evaluate(kind: str, learned: bool) -> None:
    """Their scales are raised until the bias is an int32 (`octavo.quantization.weights`)."""
    net, x = _made(kind if kind != "alone" else "conv2d")
    if kind == "alone":
        net = nn.Sequential(net[0], net[2])  # type: ignore[index]
    with torch.no_grad():
        outputs = 1 if "transposed" in kind else 0
        net[0].weight.select(outputs, 1).mul_(1e-7)  # type: ignore[index]
        if kind != "alone":
            net[1].bias.fill_(2.0)  # type: ignore[index]
    net = nn.Sequential(*net, _pointwise(net, x))  # type: ignore[misc]
    qat = octavo.prepare_qat(net, x, calibration=[x], learned_scales=learned, progress=False)
    qat.eval()
    q = octavo.convert(qat).lower("reference")
    own = qat.qparams()["0.weight"].scale
    assert bool((q.graph.constants["0.weight_scale"].flatten() > own).any())
    with torch.no_grad():
        assert torch.equal(qat(x), q(x))


def _pointwise(net: nn.Module, x: Tensor) -> nn.Module:
    """A layer that reads what a network makes, so that this is int8."""
    with torch.no_grad():
        shape = net.eval()(x).shape
    if len(shape) == 2:
        return nn.Linear(shape[1], 3)
    return {3: nn.Conv1d, 4: nn.Conv2d}[len(shape)](shape[1], 3, 1)  # type: ignore[no-any-return]


def test_groups_of_a_weight() -> None:
    net, x = _made("attention")
    scheme = octavo.Scheme("int4", symmetric=True, group_size=4, narrow_range=True)
    config = octavo.QConfig(None, octavo.QSpec(scheme, octavo.MinMax()))
    for learned in (False, True):
        qat = _trained(octavo.prepare_qat(net, x, config, learned_scales=learned), x)
        qat.eval()
        with torch.no_grad():
            assert torch.equal(qat(x), octavo.convert(qat).lower("reference")(x))


def test_names_and_values_are_the_float_models() -> None:
    net, x = _made("residual")
    net.fc.bias.requires_grad_(False)  # type: ignore[union-attr]
    before = copy.deepcopy(net.state_dict())
    qat = octavo.prepare_qat(net, x)
    own = dict(qat.named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.equal(own[name], parameter)
        assert own[name].requires_grad == parameter.requires_grad
        assert own[name].data_ptr() != parameter.data_ptr()
    assert {n for n, _ in qat.named_buffers() if "running" in n} == {
        n for n in before if "running" in n
    }
    _trained(qat, x)
    assert torch.equal(own["fc.bias"], before["fc.bias"])  # frozen
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # the user's model is left as it was


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    net = Tied()
    tokens = torch.randint(0, 11, (4, 5))
    qat = octavo.prepare_qat(net, tokens, mode="weight_only")
    assert sum(p.numel() for p in qat.parameters()) == 11 * 8
    _trained_on_tokens = torch.optim.SGD(qat.parameters(), 0.1)
    qat(tokens).square().mean().backward()
    _trained_on_tokens.step()
    qat.eval()
    with torch.no_grad():
        torch.testing.assert_close(octavo.convert(qat)(tokens), qat(tokens), atol=1e-2, rtol=1e-2)


def test_training_in_float_is_the_float_models_training() -> None:
    """With rounding off, batch statistics, gradients and running statistics are the model's."""
    net, x = _made("conv2d")
    qat = octavo.prepare_qat(net, x).fake_quantize(False)
    net.train()
    for model in (net, qat):
        model(x).square().mean().backward()
    gradients = dict(qat.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(qat.get_buffer("1.running_var"), net.get_buffer("1.running_var"))


def test_dropout_drops_in_training_alone() -> None:
    net, x = _made("residual")
    qat = _trained(octavo.prepare_qat(net, x), x)
    qat.observe(False).freeze_batch_norms()
    with torch.no_grad():
        assert not torch.equal(qat(x), qat(x))
        qat.eval()
        assert torch.equal(qat(x), qat(x))


def test_frozen_norms_keep_their_statistics() -> None:
    net, x = _made("conv2d")
    qat = _trained(octavo.prepare_qat(net, x), x)
    before = qat.get_buffer("1.running_mean").clone()
    qat.freeze_batch_norms()
    _trained(qat, x + 1, steps=2)
    assert torch.equal(qat.get_buffer("1.running_mean"), before)
    assert qat.get_parameter("1.weight").grad is not None
    qat.freeze_batch_norms(False)
    _trained(qat, x + 1, steps=1)
    assert not torch.equal(qat.get_buffer("1.running_mean"), before)


def test_a_channel_that_is_switched_off_can_learn() -> None:
    """Its factor is 0, as that of the last norm of a residual block often is at the start."""
    net, x = _made("conv2d")
    with torch.no_grad():
        net[1].weight.zero_()  # type: ignore[index]
    qat = octavo.prepare_qat(net[:2], x)  # type: ignore[index]
    (qat(x) - torch.randn(6, 7, 7)).square().mean().backward()
    gradient = qat.get_parameter("1.weight").grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(qat.get_parameter("0.weight").grad).all()
    assert gradient.abs().min() > 0
    weight = qat.get_parameter("1.weight")
    torch.optim.SGD([weight], 0.1).step()
    (qat(x) - torch.randn(6, 7, 7)).square().mean().backward()
    assert qat.get_parameter("0.weight").grad.abs().amax((1, 2, 3)).min() > 0


def test_a_checkpoint_goes_on_where_it_was_made() -> None:
    net, x = _made("conv2d")
    first = _trained(octavo.prepare_qat(net, x), x)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    other = octavo.prepare_qat(_made("conv2d")[0], x)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        now = first.eval()(x)
        assert torch.equal(octavo.convert(other).lower("reference")(x), now)
    for model in (first.train(), other):
        torch.manual_seed(1)
        _trained(model, x, steps=2)
        model.eval()
    with torch.no_grad():
        assert torch.equal(first(x), other(x))


def test_the_float_models_checkpoint_fits() -> None:
    net, x = _made("residual")
    qat = octavo.prepare_qat(_made("residual")[0], x)
    with torch.no_grad():
        net.fc.bias.fill_(3.0)  # type: ignore[union-attr, operator]
    missing, unexpected = qat.load_state_dict(net.state_dict(), strict=False)
    assert all(name.startswith("fake_quantizers") for name in missing)
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    assert torch.equal(qat.get_parameter("fc.bias"), net.fc.bias)  # type: ignore[arg-type, union-attr]


def test_a_copy_is_a_model_of_its_own() -> None:
    net, x = _made("residual")
    qat = _trained(octavo.prepare_qat(net, x), x)
    twin = copy.deepcopy(qat)
    qat.eval(), twin.eval()
    with torch.no_grad():
        expected = qat(x)
        assert torch.equal(twin(x), expected)
    _trained(twin.train(), x)
    with torch.no_grad():
        assert torch.equal(qat(x), expected)


def test_mixed_precision_trains() -> None:
    net, x = _made("residual")
    qat = octavo.prepare_qat(net, x)
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (qat(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == torch.float32 for p in qat.parameters())
    assert octavo.convert(qat)(x).dtype == torch.float32


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    net, x = _made("conv2d")
    plain = octavo.prepare_qat(net, x, calibration=[x]).observe(False).freeze_batch_norms()
    saving = copy.deepcopy(plain)
    plain(x).square().mean().backward()
    result = torch.utils.checkpoint.checkpoint(saving, x, use_reentrant=False)
    result.square().mean().backward()
    own = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(own[name].grad, parameter.grad)  # type: ignore[arg-type]


def test_kept_statistics_of_its_own_choosing_start_from_calibration() -> None:
    net, x = _made("residual")
    histogram = octavo.static_qconfig("x86", observer=octavo.Histogram())
    with pytest.raises(octavo.OctavoError, match="'histogram' of tensor 'x' cannot follow"):
        octavo.prepare_qat(net, x, histogram)
    qat = octavo.prepare_qat(net, x, histogram, calibration=[x])
    q = octavo.quantize(net, calibration=[x], qconfig=histogram, bias_correction=False)
    qat.eval()
    with torch.no_grad():
        torch.testing.assert_close(q.lower("reference")(x), qat(x), atol=1e-4, rtol=1e-4)
    before = qat.qparams()["x"].scale.clone()
    _trained(qat.train(), 10 * x, steps=2)
    assert torch.equal(qat.qparams()["x"].scale, before)  # it does not follow


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", ["residual", "recurrent", "attention"])
def test_on_cuda(name: str) -> None:
    net, x = _made(name)
    qat = _trained(octavo.prepare_qat(net.cuda(), x.cuda()), x.cuda())
    qat.eval()
    with torch.no_grad():
        expected = qat(x.cuda()).cpu()
    torch.testing.assert_close(octavo.convert(qat.cpu())(x), expected, atol=5e-2, rtol=5e-2)


def test_its_dtype_is_that_of_its_scales() -> None:
    qat = octavo.prepare_qat(nn.Linear(4, 2), torch.rand(2, 4))
    for change in (qat.half, qat.bfloat16, qat.double):
        with pytest.raises(TrainingError, match=r"cannot change its dtype.* torch\.autocast lets"):
            change()
    assert qat.float() is qat


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_records_calls_is_refused() -> None:
    """A trace would hold scales that a kernel had not written yet."""
    x = torch.rand(2, 4)
    qat = octavo.prepare_qat(nn.Linear(4, 2), x)
    qat(x)
    for record in (torch.jit.trace, lambda model, x: torch.export.export(model, (x,))):
        with pytest.raises(ExportError, match=r"with rounding: octavo\.convert makes the model"):
            record(qat.eval(), x)
    with pytest.raises(ExportError, match=r"torch\.jit\.script does not take a model that trains"):
        torch.jit.script(qat)
