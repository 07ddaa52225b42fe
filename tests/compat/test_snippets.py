"""What the tests and tutorials of torch.ao.quantization do, as small programs on octavo.compat.

Each is written anew after the case that its docstring names (eager: test_quantize_eager_ptq and
_qat, suite: test_numeric_suite_eager, fx: test_quantize_fx, observers: test_workflow_module, fuse:
test_fuse_eager, docs: the pages about quantization, tutorial: pytorch.org's). `RUNS` run and give
what the float model gives, within rounding; `REFUSED` say what to do instead.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.compat import numeric_suite as ns
from octavo.compat import quantization as tq
from octavo.compat.quantize_fx import convert_fx, fuse_fx, prepare_fx, prepare_qat_fx
from octavo.errors import OctavoError

RUNS: list[Callable[[], None]] = []
REFUSED: list[tuple[Callable[[], Any], str]] = []


def runs(program: Callable[[], None]) -> Callable[[], None]:
    RUNS.append(program)
    return program


def refused(way_out: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(program: Callable[[], Any]) -> Callable[[], Any]:
        REFUSED.append((program, way_out))
        return program

    return add


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class Stubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.quant(x)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        return self.dequant(self.fc(torch.flatten(x, 1)))


class Functionals(nn.Module):
    """Every operation of FloatFunctional, between layers that keep integers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.before, self.after = nn.Linear(6, 6), nn.Linear(12, 3)
        self.cat, self.add, self.mul = (tq.FloatFunctional() for _ in range(3))
        self.add_relu, self.add_scalar, self.mul_scalar = (tq.FloatFunctional() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.quant(x))
        y = self.add_relu.add_relu(x, self.mul.mul(x, x))
        z = self.mul_scalar.mul_scalar(self.add_scalar.add_scalar(self.add.add(x, y), 0.5), 0.5)
        return self.dequant(self.after(self.cat.cat([y, z], 1)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = (
            nn.Embedding(20, 8),
            nn.LSTM(8, 12, 2),
            nn.Linear(12, 20),
        )

    def forward(self, x: Tensor, hidden: Any) -> Any:
        out, hidden = self.rnn(self.encoder(x), hidden)
        return self.decoder(out), hidden


VECTORS = [torch.rand(4, 5) for _ in range(2)]
IMAGES = [torch.rand(4, 3, 8, 8) for _ in range(2)]


def run_all(model: nn.Module, data: list[Tensor]) -> None:
    with torch.no_grad():
        for x in data:
            model(x)


def train_all(model: nn.Module, data: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for x in data:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def near(int8: nn.Module, model: nn.Module, data: list[Tensor], part: float = 0.1) -> None:
    expected = model(data[0])
    assert (int8(data[0]) - expected).norm() < part * expected.norm()


def static(model: nn.Module, data: list[Tensor], qconfig: Any = None) -> nn.Module:
    """prepare, calibrate, convert, out of place; it is near the float model."""
    model.eval()
    if qconfig is not None:
        model.qconfig = qconfig
    ready = tq.prepare(model)
    run_all(ready, data)
    int8 = tq.convert(ready)
    near(int8, model, data)
    return int8


# Eager mode, after training


@runs
def single_layer() -> None:
    """eager: test_single_layer"""
    int8 = static(Stubs(), VECTORS, tq.get_default_qconfig("fbgemm"))
    assert type(int8.fc) is not nn.Linear


@runs
def single_layer_in_one_line() -> None:
    """eager: test_single_layer, quantize()"""
    model = Stubs().eval()
    model.qconfig = tq.get_default_qconfig("x86")
    keys = set(model.state_dict())
    int8 = tq.quantize(model, run_all, [VECTORS])
    assert set(model.state_dict()) == keys
    near(int8, model, VECTORS)


@runs
def single_layer_in_place() -> None:
    """eager: test_single_layer, quantize(inplace=True)"""
    model = Stubs().eval()
    model.qconfig = tq.get_default_qconfig("x86")
    before = copy.deepcopy(model)
    tq.quantize(model, run_all, [VECTORS], inplace=True)
    near(model, before, VECTORS)


@runs
def only_the_second_layer() -> None:
    """eager: test_two_layers"""
    model = TwoLayers().eval()
    model.fc2 = tq.QuantWrapper(model.fc2)
    model.fc2.qconfig = tq.default_qconfig
    int8 = static(model, VECTORS)
    assert type(int8.fc1) is nn.Linear
    assert type(int8.fc2.module) is not nn.Linear


@runs
def nested_with_a_child_of_its_own_qconfig() -> None:
    """eager: test_nested3"""
    model = nn.Sequential(TwoLayers(), nn.ReLU(), nn.Linear(5, 3))
    wrapped = tq.QuantWrapper(model)
    wrapped.qconfig = tq.default_qconfig
    model[0].fc2.qconfig = tq.default_per_channel_qconfig
    static(wrapped, VECTORS)


@runs
def a_part_is_skipped() -> None:
    """eager: test_skip_quant"""
    model = nn.Sequential(tq.QuantWrapper(TwoLayers()), nn.Linear(5, 3))
    model.qconfig = tq.default_qconfig
    model[1].qconfig = None
    int8 = static(model, VECTORS)
    assert type(int8[1]) is nn.Linear
    assert type(int8[0].module.fc1) is not nn.Linear


@runs
def convolution_and_linear_fused() -> None:
    """tutorial: static quantization with eager mode"""
    model = ConvNet().eval()
    tq.fuse_modules(model, [["conv", "bn", "relu"]], inplace=True)
    int8 = static(model, IMAGES, tq.get_default_qconfig("x86"))
    assert "ReLU" in str(int8.conv)


@runs
def fused_out_of_place() -> None:
    """fuse: test_fuse_modules_replicas_and_originals"""
    model = ConvNet().eval()
    fused = tq.fuse_modules(model, ["conv", "bn"])
    assert isinstance(model.bn, nn.BatchNorm2d)
    assert isinstance(fused.bn, nn.Identity)
    assert torch.allclose(fused(IMAGES[0]), model(IMAGES[0]), atol=1e-5)


@runs
def fused_linear_and_batch_norm() -> None:
    """fuse: test_fusion_linear_bn_eval"""
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).eval()
    fused = tq.fuse_modules(model, [["0", "1"]])
    assert torch.allclose(fused(VECTORS[0]), model(VECTORS[0]), atol=1e-5)


@runs
def functionals() -> None:
    """eager: test_functional_module"""
    static(Functionals(), [torch.rand(4, 6) for _ in range(3)], tq.get_default_qconfig("x86"))


@runs
def wrapped_residual_network() -> None:
    """eager: test_resnet_base"""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
            self.downsample, self.skip = nn.Identity(), tq.FloatFunctional()
            self.pool, self.fc = nn.AdaptiveAvgPool2d((4, 4)), nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu1(self.bn1(self.conv1(x)))
            y = self.pool(self.relu2(self.skip.add(y, self.downsample(x))))
            return self.fc(torch.flatten(y, 1))

    model = Block().eval()
    tq.fuse_modules(model, [["conv1", "bn1", "relu1"]], inplace=True)
    static(tq.QuantWrapper(model), IMAGES, tq.get_default_qconfig("x86"))


@runs
def activation_between_layers() -> None:
    """eager: test_leaky_relu"""
    model = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3))
    static(tq.QuantWrapper(model), VECTORS, tq.default_qconfig)


@runs
def own_observers() -> None:
    """docs: QConfig of observers with arguments"""
    own = tq.QConfig(
        activation=tq.MinMaxObserver.with_args(dtype=torch.quint8),
        weight=tq.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    )
    static(Stubs(), VECTORS, own)


@runs
def state_dict_into_a_new_model() -> None:
    """eager: test_save_load_state_dict"""
    model = ConvNet().eval()
    int8 = static(copy.deepcopy(model), IMAGES, tq.get_default_qconfig("x86"))
    file = io.BytesIO()
    torch.save(int8.state_dict(), file)
    file.seek(0)
    model.qconfig = tq.get_default_qconfig("x86")
    again = tq.convert(tq.prepare(model))
    again.load_state_dict(torch.load(file))
    assert torch.equal(again(IMAGES[0]), int8(IMAGES[0]))


@runs
def weights_and_scales_of_a_layer() -> None:
    """docs: int_repr, scale and zero_point of a converted layer"""
    int8 = static(ConvNet(), IMAGES, tq.get_default_qconfig("x86"))
    weight = int8.conv.weight()
    assert weight.int_repr().dtype == torch.int8
    assert weight.dequantize().shape == (4, 3, 3, 3)


@runs
def transposed_convolution() -> None:
    """eager: test_conv_transpose, qnnpack"""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2, stride=2))
    int8 = static(tq.QuantWrapper(model), IMAGES, tq.get_default_qconfig("qnnpack"))
    assert type(int8.module[1]) is not nn.ConvTranspose2d


@runs
def normalizations() -> None:
    """eager: test_normalization"""
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GroupNorm(2, 8))
    static(tq.QuantWrapper(model), VECTORS, tq.default_qconfig)


@runs
def embedding_and_static_linear() -> None:
    """eager: test_embedding_linear_dynamic, the static case"""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.fc = nn.Embedding(10, 12), nn.Linear(12, 3)
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.emb.qconfig = tq.float_qparams_weight_only_qconfig
            self.qconfig = tq.default_qconfig

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.fc(self.quant(self.emb(x))))

    int8 = static(Model(), [torch.randint(10, (4, 6)) for _ in range(2)])
    assert type(int8.emb) is not nn.Embedding


@runs
def one_dimension_and_three() -> None:
    """fx: test_conv_module"""
    for kind, shape in ((nn.Conv1d, (2, 3, 8)), (nn.Conv3d, (2, 3, 5, 5, 5))):
        model = nn.Sequential(kind(3, 4, 3), nn.ReLU(), kind(4, 4, 3))
        static(tq.QuantWrapper(model), [torch.rand(shape)], tq.get_default_qconfig("x86"))


# Eager mode, dynamic


@runs
def dynamic_single_layer() -> None:
    """eager: test_single_layer (dynamic)"""
    model = TwoLayers().eval()
    for spec in (None, {nn.Linear}, {"fc1", "fc2"}, {"fc2": tq.default_dynamic_qconfig}):
        near(tq.quantize_dynamic(model, spec), model, VECTORS)


@runs
def dynamic_by_class_and_by_path() -> None:
    """eager: test_nested2 (dynamic)"""
    model = nn.Sequential(TwoLayers(), nn.Linear(5, 3)).eval()
    spec = {"0.fc1": tq.default_dynamic_qconfig, nn.Linear: tq.per_channel_dynamic_qconfig}
    near(tq.quantize_dynamic(model, spec), model, VECTORS)


@runs
def dynamic_lstm() -> None:
    """tutorial: dynamic quantization, the recipe"""
    lstm = nn.LSTM(8, 8, 1)
    holder = nn.ModuleDict({"lstm": lstm})
    x, hidden = torch.randn(20, 1, 8), (torch.randn(1, 1, 8), torch.randn(1, 1, 8))
    int8 = tq.quantize_dynamic(holder, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    expected, (h, _) = lstm(x, hidden)
    out, (h8, _) = int8["lstm"](x, hidden)
    assert (out - expected).abs().mean() < 0.02
    assert h8.shape == h.shape


@runs
def dynamic_language_model() -> None:
    """tutorial: dynamic quantization on an LSTM word language model"""
    model = Words().eval()
    int8 = tq.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    hidden = (torch.zeros(2, 3, 12), torch.zeros(2, 3, 12))
    x = torch.randint(20, (7, 3))
    for _ in range(2):
        out, hidden = int8(x, hidden)
    assert out.shape == (7, 3, 20)


@runs
def dynamic_cells() -> None:
    """eager: test_quantized_rnn_cell"""
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        model = nn.Sequential(kind(4, 6)).eval()
        int8 = tq.quantize_dynamic(model, {kind})
        x = torch.rand(3, 4)
        got, expected = int8(x), model(x)
        got, expected = (v[0] if isinstance(v, tuple) else v for v in (got, expected))
        assert (got - expected).abs().max() < 0.05


@runs
def embedding_by_its_weights() -> None:
    """eager: test_quantized_embedding"""
    model = Words().eval()
    model.encoder.qconfig = tq.float_qparams_weight_only_qconfig
    spec = {nn.Embedding: tq.float_qparams_weight_only_qconfig}
    int8 = tq.quantize_dynamic(model, spec, dtype=torch.quint8)
    x = torch.arange(20)
    assert (int8.encoder(x) - model.encoder(x)).abs().max() < 0.05


@runs
def bert_like_layers() -> None:
    """tutorial: dynamic quantization on BERT"""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
            self.output, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
            return self.norm(x + self.output(scores.softmax(-1) @ self.value(x)))

    model = Layer().eval()
    int8 = tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    near(int8, model, [torch.rand(2, 6, 16)], part=0.05)


@runs
def transformer_layer() -> None:
    """forums: quantize_dynamic of nn.TransformerEncoderLayer"""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    int8 = tq.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    near(int8, layer, [torch.rand(2, 6, 16)], part=0.05)


@runs
def recurrent_layers_of_both_directions() -> None:
    """eager: test_quantized_rnn"""
    for kind in (nn.LSTM, nn.GRU):
        model = nn.ModuleDict({"rnn": kind(4, 6, 2, bidirectional=True)}).eval()
        int8 = tq.quantize_dynamic(model, {"rnn": tq.per_channel_dynamic_qconfig})
        x = torch.rand(5, 2, 4)
        assert (int8["rnn"](x)[0] - model["rnn"](x)[0]).abs().max() < 0.05


@runs
def packed_sequences() -> None:
    """eager: test_quantized_rnn, PackedSequence"""
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 6)}).eval()
    int8 = tq.quantize_dynamic(model, {nn.LSTM})
    packed = nn.utils.rnn.pack_padded_sequence(torch.rand(5, 2, 4), torch.tensor([5, 3]))
    got, expected = int8["rnn"](packed)[0], model["rnn"](packed)[0]
    assert (got.data - expected.data).abs().max() < 0.05


# Eager mode, training


@runs
def training_by_hand() -> None:
    """eager: test_manual (qat)"""
    model = Stubs().train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    ready = tq.prepare_qat(model)
    train_all(ready, VECTORS)
    int8 = tq.convert(ready)
    near(int8, ready.eval(), VECTORS)


@runs
def training_in_one_line() -> None:
    """eager: test_conv_linear (qat), quantize_qat()"""
    model = ConvNet().train()
    model.qconfig = tq.default_qat_qconfig
    int8 = tq.quantize_qat(model, train_all, [IMAGES])
    assert int8(IMAGES[0]).shape == (4, 5)


@runs
def training_with_fused_layers_and_phases() -> None:
    """tutorial: quantization-aware training in eager mode"""
    model = ConvNet().train()
    tq.fuse_modules_qat(model, [["conv", "bn", "relu"]], inplace=True)
    model.qconfig = tq.get_default_qat_qconfig("x86")
    tq.prepare_qat(model, inplace=True)
    train_all(model, IMAGES)
    model.apply(tq.disable_observer)
    train_all(model, IMAGES)
    int8 = tq.convert(model.eval(), inplace=False)
    near(int8, model, IMAGES)


@runs
def an_epoch_is_evaluated_in_between() -> None:
    """vision: references/classification/train_quantization.py"""
    model = ConvNet().train()
    model.qconfig = tq.get_default_qat_qconfig("qnnpack")
    tq.prepare_qat(model, inplace=True)
    model.apply(tq.enable_observer)
    model.apply(tq.enable_fake_quant)
    train_all(model, IMAGES)
    evaluated = copy.deepcopy(model).eval()
    tq.convert(evaluated, inplace=True)
    assert evaluated(IMAGES[0]).shape == (4, 5)
    train_all(model.train(), IMAGES)


@runs
def training_saved_and_loaded() -> None:
    """eager: test_train_save_load_eval"""

    def fresh() -> nn.Module:
        model = tq.QuantWrapper(TwoLayers())
        model.qconfig = tq.get_default_qat_qconfig("x86")
        return tq.prepare_qat(model)

    ready = fresh()
    train_all(ready, VECTORS)
    int8 = tq.convert(ready)
    again = tq.convert(fresh())
    again.load_state_dict(int8.state_dict())
    assert torch.equal(again(VECTORS[0]), int8(VECTORS[0]))


@runs
def rounding_in_evaluation_alone() -> None:
    """eager: test_eval_only_fake_quant"""
    model = Stubs()
    model.qconfig = tq.default_qat_qconfig
    ready = tq.prepare_qat(model).eval()
    run_all(ready, VECTORS)
    near(ready, model, VECTORS)


@runs
def training_through_functions_of_fixed_range() -> None:
    """eager: test_fixed_qparam_ops"""
    model = nn.Sequential(nn.Linear(5, 5), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh())
    model = tq.QuantWrapper(model).train()
    model.qconfig = tq.default_qat_qconfig
    ready = tq.prepare_qat(model)
    train_all(ready, VECTORS)
    near(tq.convert(ready), ready.eval(), VECTORS)


@runs
def fake_quantize_by_itself() -> None:
    """observers: test_fq_module_per_tensor"""
    rounding = tq.FakeQuantize(
        observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    x = torch.randn(40, requires_grad=True)
    y = rounding(x)
    y.sum().backward()
    assert (x - y).abs().max() <= rounding.scale / 2 + 1e-6
    assert torch.equal(x.grad, torch.ones(40))


@refused("octavo.plan")
def own_mappings_of_modules() -> None:
    """eager: test_embedding_bag_linear, prepare_qat(mapping=)"""
    tq.prepare_qat(Stubs(), mapping=tq.get_embedding_qat_module_mappings())


# FX mode


@runs
def fx_static() -> None:
    """tutorial: FX graph mode post training static quantization"""
    model = ConvNet().eval()
    ready = prepare_fx(model, {"": tq.get_default_qconfig("fbgemm")})
    run_all(ready, IMAGES)
    near(convert_fx(ready), model, IMAGES)


@runs
def fx_with_a_mapping() -> None:
    """docs: prepare_fx with a QConfigMapping"""
    model = nn.Sequential(TwoLayers(), nn.ReLU(), nn.Linear(5, 3)).eval()
    mapping = (
        tq.get_default_qconfig_mapping("x86")
        .set_object_type(nn.ReLU, None)
        .set_module_name("0.fc1", None)
    )
    ready = prepare_fx(model, mapping, (VECTORS[0],))
    run_all(ready, VECTORS)
    int8 = convert_fx(ready)
    near(int8, model, VECTORS)
    assert type(int8.get_submodule("0.fc1")) is nn.Linear


@runs
def fx_with_functions_and_operators() -> None:
    """fx: functional.linear, +, torch.cat"""

    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 5))
            self.last = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.relu(functional.linear(x, self.w))
            return self.last(torch.cat([y + y, y], 1))

    model = Functions().eval()
    rules = {
        "": tq.default_qconfig,
        "object_type": [(torch.cat, tq.default_qconfig)],
        "module_name_regex": [("nothing.*", None)],
    }
    ready = prepare_fx(model, rules, VECTORS[0])
    run_all(ready, VECTORS)
    near(convert_fx(ready), model, VECTORS)


@runs
def fx_dynamic() -> None:
    """tutorial: FX graph mode post training dynamic quantization"""
    model = Words().eval()
    mapping = (
        tq.QConfigMapping()
        .set_object_type(nn.Embedding, tq.float_qparams_weight_only_qconfig)
        .set_object_type(nn.LSTM, tq.default_dynamic_qconfig)
        .set_object_type(nn.Linear, tq.default_dynamic_qconfig)
    )
    hidden = (torch.zeros(2, 3, 12), torch.zeros(2, 3, 12))
    x = torch.randint(20, (7, 3))
    int8 = convert_fx(prepare_fx(model, mapping, (x, hidden)))
    assert (int8(x, hidden)[0] - model(x, hidden)[0]).abs().max() < 0.05


@runs
def fx_of_shapes_and_pools() -> None:
    """fx: test_general_shape_ops"""

    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.max_pool2d(functional.relu(self.conv(x)), 2)
            y = functional.interpolate(y, scale_factor=2).permute(0, 1, 3, 2)
            y = y.chunk(2, dim=2)[0].reshape(-1, 4, 8, 4)
            return self.last(functional.adaptive_avg_pool2d(y, 2))

    model = Shapes().eval()
    ready = prepare_fx(model, tq.get_default_qconfig_mapping("x86"), (IMAGES[0],))
    run_all(ready, IMAGES)
    near(convert_fx(ready), model, IMAGES)


@runs
def fx_with_two_inputs_and_a_dict_of_outputs() -> None:
    """fx: test_dict_output"""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"left": self.left(x), "sum": self.left(x) + self.right(y)}

    model = Model().eval()
    ready = prepare_fx(model, {"": tq.get_default_qconfig("onednn")}, tuple(VECTORS))
    ready(*VECTORS)
    got, expected = convert_fx(ready)(*VECTORS), model(*VECTORS)
    for key in expected:
        assert (got[key] - expected[key]).abs().max() < 0.05


@runs
def fx_converted_twice() -> None:
    """fx: test_deepcopy_preserve_attributes and calibration that goes on"""
    model = TwoLayers().eval()
    ready = prepare_fx(model, tq.get_default_qconfig_dict("x86"), VECTORS[0])
    run_all(ready, VECTORS[:1])
    first = convert_fx(copy.deepcopy(ready))
    run_all(ready, VECTORS[1:])
    near(first, model, VECTORS)
    near(convert_fx(ready), model, VECTORS)


@runs
def fx_training() -> None:
    """docs: quantization-aware training in FX mode"""
    model = ConvNet().train()
    ready = prepare_qat_fx(model, tq.get_default_qat_qconfig_mapping("x86"), (IMAGES[0],))
    train_all(ready, IMAGES)
    near(convert_fx(ready), ready.eval(), IMAGES)


@runs
def fx_of_a_part() -> None:
    """tutorial: FX user guide, quantize the part that can be traced"""

    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = TwoLayers()

        def forward(self, x: Tensor) -> Tensor:
            while x.sum() > 100:
                x = x / 2
            return self.part(x)

    model = Loops().eval()
    before = copy.deepcopy(model)
    model.part = prepare_fx(model.part, {"": tq.default_qconfig})
    run_all(model, VECTORS)
    model.part = convert_fx(model.part)
    near(model, before, VECTORS)


@runs
def fx_saved_and_loaded() -> None:
    """tutorial: FX static, the state dict"""
    model = ConvNet().eval()
    rules = {"": tq.get_default_qconfig("x86")}
    ready = prepare_fx(model, rules, IMAGES[0])
    run_all(ready, IMAGES)
    int8 = convert_fx(ready)
    again = convert_fx(prepare_fx(model, rules, IMAGES[0]))
    again.load_state_dict(int8.state_dict())
    assert torch.equal(again(IMAGES[0]), int8(IMAGES[0]))


@runs
def fx_fused() -> None:
    """tutorial: FX static, fuse_fx"""
    model = ConvNet().eval()
    fused = fuse_fx(model)
    assert torch.allclose(fused(IMAGES[0]), model(IMAGES[0]), atol=1e-5)


# Observers


@runs
def observers_of_a_tensor() -> None:
    """observers: test_per_tensor_observers"""
    x = torch.tensor([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    for kind in (tq.MinMaxObserver, tq.MovingAverageMinMaxObserver):
        observer = kind(dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=True)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        assert scale.item() == pytest.approx(6 / 127)
        assert zero_point.item() == 0


@runs
def observers_start_anew() -> None:
    """observers: test_observer_reset"""
    observer = tq.MinMaxObserver()
    observer(torch.tensor([-1.0, 10.0]))
    observer.reset_min_max_vals()
    observer(torch.tensor([-1.0, 3.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(4 / 255)
    assert zero_point.item() == 64


@runs
def observers_of_channels() -> None:
    """observers: test_per_channel_observers"""
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    observer = tq.PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
    )
    assert observer(x) is x
    scale, zero_point = observer.calculate_qparams()
    assert torch.allclose(scale, torch.tensor([2.0, 4.0]) / 127.5)
    assert zero_point.tolist() == [0, 0]


@runs
def histogram_after_two_batches() -> None:
    """observers: test_histogram_observer"""
    observer = tq.HistogramObserver(bins=16)
    observer(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    observer(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(8 / 255, rel=0.15)
    assert zero_point.item() == 0


# Numeric suite


@runs
def suite_weights() -> None:
    """suite: test_compare_weights_conv_static"""
    model = ConvNet().eval()
    tq.fuse_modules(model, [["conv", "bn", "relu"]], inplace=True)
    int8 = static(model, IMAGES, tq.default_qconfig)
    found = ns.compare_weights(model.state_dict(), int8.state_dict())
    assert len(found) == 2
    for pair in found.values():
        assert pair["float"].shape == pair["quantized"].shape


@runs
def suite_weights_dynamic() -> None:
    """suite: test_compare_weights_linear_dynamic"""
    model = TwoLayers().eval()
    int8 = tq.quantize_dynamic(model)
    found = ns.compare_weights(model.state_dict(), int8.state_dict())
    assert len(found) == 2


@runs
def suite_weights_of_an_lstm() -> None:
    """suite: test_compare_weights_lstm_dynamic"""
    model = Words().eval()
    found = ns.compare_weights(model.state_dict(), tq.quantize_dynamic(model).state_dict())
    assert any("rnn" in name for name in found)


@runs
def suite_outputs() -> None:
    """suite: test_compare_model_outputs_conv_static"""
    model = ConvNet().eval()
    int8 = static(model, IMAGES, tq.default_qconfig)
    found = ns.compare_model_outputs(model, int8, IMAGES[0])
    for pair in found.values():
        assert pair["float"][0].shape == pair["quantized"][0].shape


@runs
def suite_stubs() -> None:
    """suite: test_compare_model_stub_linear_static"""
    model = Stubs().eval()
    int8 = static(model, VECTORS, tq.default_qconfig)
    found = ns.compare_model_stub(model, int8, [nn.Linear], VECTORS[0])
    assert len(found) == 1


# What Octavo does not share


@refused("QConfigMapping")
def custom_modules() -> None:
    """fx: test_custom_module_class"""
    prepare_fx(TwoLayers(), {"": tq.default_qconfig}, prepare_custom_config={"x": 1})


@refused("octavo.compare")
def default_evaluation() -> None:
    """tutorial: numeric suite, default_eval_fn"""
    tq.quantize(Stubs(), tq.default_eval_fn, [VECTORS])


@refused("octavo_model.save")
def script_module() -> None:
    """eager: checkScriptable"""
    torch.jit.script(static(Stubs(), VECTORS, tq.default_qconfig))


@refused("int7")
def weights_in_half_of_the_integers() -> None:
    """docs: QConfig, default_observer.with_args(dtype=torch.qint8) for weights"""
    weight = tq.default_observer.with_args(dtype=torch.qint8)
    static(Stubs(), VECTORS, tq.QConfig(tq.default_observer, weight))


@refused("model.half()")
def half_precision() -> None:
    """eager: test_per_channel_linear_quantize, dtype=torch.float16"""
    tq.quantize_dynamic(TwoLayers(), {nn.Linear}, dtype=torch.float16)


@pytest.mark.filterwarnings("ignore::octavo.OctavoWarning")
@pytest.mark.parametrize("program", RUNS, ids=lambda program: program.__name__)
def test_it_runs(program: Callable[[], None]) -> None:
    program()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("program", "way_out"), REFUSED, ids=[program.__name__ for program, _ in REFUSED]
)
def test_it_says_what_to_do_instead(program: Callable[[], Any], way_out: str) -> None:
    with pytest.raises(OctavoError) as error:
        program()
    assert way_out in str(error.value)


def test_nine_of_ten_run() -> None:
    assert len(RUNS) >= 30
    assert len(RUNS) >= 9 * len(REFUSED)
