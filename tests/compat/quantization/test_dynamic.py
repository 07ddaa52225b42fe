"""Layers that are quantized one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.quantization as theirs
from compat.networks import decibels
from torch import Tensor, nn
from torch.nn.utils import prune

import octavo
import octavo.compat.quantization as ours
from octavo.errors import OctavoWarning


class Loops(nn.Module):
    """A model that cannot be captured: its depth depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        while x.norm() < 50:
            x = x * 2 + self.layer(x)
        y: Tensor = self.head(x)
        return y


@pytest.fixture(scope="module")
def quantized() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Loops().eval()
    return model, ours.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def test_the_model_runs_as_it_is_written(quantized: tuple[nn.Module, nn.Module]) -> None:
    model, q = quantized
    for shape in ((8, 16), (2, 3, 16), (16,), (1, 16)):
        x = torch.randn(shape)
        assert q(x).shape == (*shape[:-1], 4)
        assert decibels(model(x), q(x)) > 25
    assert str(q.head) == "DynamicQuantizedLinear(in_features=16, out_features=4, bias=True)"
    assert isinstance(model.layer, nn.Linear)


def test_it_is_at_least_as_right_as_torchs(quantized: tuple[nn.Module, nn.Module]) -> None:
    model, q = quantized
    other = theirs.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(64, 16)
    assert decibels(model(x), q(x)) > decibels(model(x), other(x)) - 1


def test_state_dicts_and_copies(quantized: tuple[nn.Module, nn.Module]) -> None:
    _, q = quantized
    x = torch.randn(4, 16)
    assert q.state_dict()["head.weight"].dtype == torch.int8
    other = ours.quantize_dynamic(Loops().eval(), {nn.Linear})
    assert not torch.equal(other(x), q(x))
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x), q(x))
    assert torch.equal(copy.deepcopy(other).to("cpu")(x), q(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: type[nn.Module]) -> None:
    model = kind(8, 12, num_layers=2, batch_first=True, bidirectional=True).eval()
    q = ours.quantize_dynamic(nn.Sequential(model))[0]
    assert str(q) == f"DynamicQuantized{model}"
    assert sum(t.element_size() * t.numel() for t in q.buffers()) < 0.5 * sum(
        4 * p.numel() for p in model.parameters()
    )
    for batch in (1, 3):
        x = torch.randn(batch, 5, 8)
        assert decibels(model(x)[0], q(x)[0]) > 25
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 8), [5, 3], batch_first=True)
    assert decibels(model(packed)[0].data, q(packed)[0].data) > 25


def test_torchs_own_transformer() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 7, 32)
    q = ours.quantize_dynamic(model, {nn.Linear})
    assert str(q.layers[0].linear1).startswith("DynamicQuantizedLinear")
    assert decibels(model(x), q(x)) > 30  # torch.ao's has no 'device' here
    seen: list[Tensor] = []
    q.layers[0].linear1.register_forward_hook(lambda module, args, result: seen.append(result))
    q(x)
    assert [tuple(t.shape) for t in seen] == [(2, 7, 64)]


def test_specs_by_path_kind_and_qconfig() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4)))
    tokens = torch.randint(0, 10, (3, 5))
    spec = {
        "1": ours.default_dynamic_qconfig,
        nn.Embedding: ours.float_qparams_weight_only_qconfig,
        "2": None,
    }
    q = ours.quantize_dynamic(model, spec)
    kinds = [str(m).split("(")[0] for m in (q[0], q[1], q[2][0])]
    assert kinds == ["WeightOnlyEmbedding", "DynamicQuantizedLinear", "Linear"]
    assert q[1].weight().q_scale() > 0
    assert decibels(model(tokens), q(tokens)) > 30
    four = ours.quantize_dynamic(model, dtype=torch.quint4x2)
    assert four[0].weight().dequantize().shape == (10, 8)
    assert four.state_dict()["0.weight"].numel() == 40
    assert decibels(model[0](tokens), four[0](tokens)) > 15
    inside = ours.quantize_dynamic(model, {"2"})
    assert isinstance(inside[1], nn.Linear)
    assert str(inside[2][0]).startswith("DynamicQuantizedLinear")


def test_in_place_and_one_layer_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert ours.quantize_dynamic(model, inplace=True) is model
    assert str(ours.quantize_dynamic(nn.Linear(4, 4))).startswith("DynamicQuantizedLinear")


def test_what_has_no_dynamic_form_stays_float_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.warns(OctavoWarning, match="stays float: there is Conv2d"):
        assert isinstance(ours.quantize_dynamic(model, {nn.Conv2d})[0], nn.Conv2d)


def test_errors_name_the_way_out() -> None:
    with pytest.raises(octavo.OctavoError, match=r"torch.float16: take torch.qint8.*model.half"):
        ours.quantize_dynamic(nn.Linear(2, 2), dtype=torch.float16)
    with pytest.raises(octavo.OctavoError, match="argument mapping"):
        ours.quantize_dynamic(nn.Linear(2, 2), mapping={})


def test_eager_prepare_and_convert_of_tables() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)).eval()
    model[0].qconfig = ours.float_qparams_weight_only_qconfig
    q = ours.convert(ours.prepare(model))
    tokens = torch.randint(0, 10, (3, 5))
    assert str(q[0]) == "WeightOnlyEmbedding(10, 8)"
    assert decibels(model(tokens), q(tokens)) > 30


def test_hooks_on_a_layer_stay() -> None:
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    model[0].register_forward_hook(lambda *args: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *args, **kw: seen.append("before"), with_kwargs=True)
    q = ours.quantize_dynamic(model)
    q(torch.rand(2, 4))
    q(torch.rand(2, 4))
    assert seen == ["before", "after"] * 2


def test_computed_weights_stay_float_and_it_is_said() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    pruned = nn.Linear(4, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    model = nn.Sequential(layer, pruned, nn.Linear(4, 4))
    with pytest.warns(OctavoWarning, match=r"'0', '1' stay float: its weight is.*prune\.remove"):
        ours.quantize_dynamic(model, inplace=True)
    assert [isinstance(m, nn.Linear) for m in model] == [True, True, False]
    assert model(torch.rand(2, 4)).shape == (2, 4)


def test_rules_that_fit_nothing_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(octavo.OctavoError, match="'fc9', which is not a module of the model"):
        ours.quantize_dynamic(model, {"0", "fc9"})
    with pytest.raises(octavo.OctavoError, match="is static, and there is no data"):
        ours.quantize_dynamic(model, {nn.Linear: ours.default_qconfig})


@pytest.mark.parametrize("spec", [{nn.Linear, nn.Embedding}, {"0"}, {nn.EmbeddingBag}])
def test_a_table_that_is_asked_to_be_dynamic_is_refused_as_by_torch(spec: set[object]) -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))
    with pytest.raises(octavo.OctavoError, match=r"is dynamic.*take float_qparams_weight_only"):
        ours.quantize_dynamic(model, spec)
    both = {
        nn.Embedding: ours.float_qparams_weight_only_qconfig,
        nn.Linear: ours.default_dynamic_qconfig,
    }
    kinds = [str(m).split("(")[0] for m in ours.quantize_dynamic(model, both)]
    assert kinds == ["WeightOnlyEmbedding", "DynamicQuantizedLinear"]
