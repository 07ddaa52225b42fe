"""Samples with NaN or infinities: what the float model gives, and nothing for their neighbours.
Empty batches: what the float model gives.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from calling import Call
from recurrent import Recurrent
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, InputError
from octavo.numerics.native import observing
from octavo.quantization.nonfinite_inputs import Watched, masks_of

NAN, INF = math.nan, math.inf
TARGET = octavo.host_target()
HOW = {
    "static": {"mode": "static"},
    "dynamic": {"qconfig": octavo.dynamic_qconfig(TARGET, per_token=False)},
    "per token": {"qconfig": octavo.dynamic_qconfig(TARGET, per_token=True)},
    "weight only": {"mode": "weight_only"},
    "four bits": {"qconfig": octavo.weight_only_qconfig(4, group_size=8)},
}


class Attention(nn.Module):
    """Self-attention with a mask that is added to the scores, as many write it."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.qkv, self.head, self.by_hand = nn.Linear(16, 48), nn.Linear(16, 4), by_hand

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.by_hand:
            mixed = (q @ k.transpose(1, 2) / 4 + mask[:, None, :]).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None, :].expand(-1, 5, -1))
        return self.head(mixed)


NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), (4, 16)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        ),
        (4, 3, 8, 8),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM(16, 16, batch_first=True)), (4, 5, 16)),
}


def check(net: nn.Module, q, x: Tensor) -> None:
    """Sample 1 gets what the float model gives; the others are what they are without it."""
    for value in (NAN, INF, -INF):
        bad = x.clone()
        bad[1].view(-1)[3] = value
        emptied = x.clone()
        emptied[1] = 0.0
        with torch.no_grad():
            wanted = net(bad)[1]
        got, others = q(bad), q(emptied)
        finite = torch.isfinite(got[1])  # infinity times a weight that was rounded to 0 is NaN
        assert not bool((finite & ~torch.isfinite(wanted)).any())
        assert torch.allclose(got[1][finite], wanted[finite], atol=0.05)
        if math.isnan(value):
            assert torch.equal(finite, torch.isfinite(wanted))
        for index in (0, 2, 3):
            assert torch.equal(got[index], others[index])
            assert bool(torch.isfinite(got[index]).all())


@cache
def quantized(name: str, how: str) -> tuple[nn.Module, octavo.QuantizedModel, Tensor]:
    """For all runtimes, each of which makes a model of its own of it."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net, x = make().eval(), torch.randn(shape)
    given = {"calibration": [x]} if how == "static" else {"example_inputs": x}
    return net, octavo.quantize(net, **given, **HOW[how], target=TARGET, progress=False), x


@pytest.mark.parametrize("runtime", ["reference", "torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NETS)
def test_a_bad_sample_gives_what_the_float_model_gives(name, how, runtime):
    if runtime not in ("reference", "torch"):
        pytest.importorskip(runtime)
    net, q, x = quantized(name, how)
    check(net, q.lower(runtime), x)


@pytest.mark.sweep  # test_inductor holds that runtime, which compiles for many seconds
def test_on_the_inductor_runtime():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(4, 3, 8, 8)
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False)
    check(net, q.lower("inductor"), x)


def test_infinity_that_the_float_model_turns_into_a_number():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU6(), nn.Linear(8, 4)).eval()
    x = torch.rand(3, 16)
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False)
    x[1, 2] = INF
    got = q(x)
    with torch.no_grad():
        wanted = net(x)
    assert bool(torch.isfinite(got).all())
    assert float((got - wanted).abs().max()) < 0.05
    assert float((got[1] - got[0]).abs().max()) > 0.2


@cache
def masked(by_hand: bool, mode: str) -> tuple[nn.Module, Tensor, Tensor, octavo.QuantizedModel]:
    """Attention with its input and a mask, for all runtimes."""
    torch.manual_seed(0)
    net, x, mask = Attention(by_hand).eval(), torch.randn(4, 5, 16), torch.zeros(4, 5)
    mask[0, 3:] = mask[2, 4:] = -INF
    data = [(x, mask)]
    q = octavo.quantize(net, calibration=data, mode=mode, target=TARGET, progress=False)
    return net, x, mask, q


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("runtime", ["reference", "torch", "onnxruntime"])
def test_masks_with_minus_infinity_work_as_before(by_hand, mode, runtime):
    if runtime == "onnxruntime":
        pytest.importorskip(runtime)
    net, x, mask, q = masked(by_hand, mode)
    x, mask = x.clone(), mask.clone()
    assert masks_of(q.graph) == {"mask"}
    assert q._watched == Watched(values=(0,), masks=(1,), batched=((0, 0), (1, 0)))
    q = q.lower(runtime)
    assert q._watched.are_fine([x, mask])
    with torch.no_grad():
        wanted = net(x, mask)
    got = q(x, mask)
    assert float((got - wanted).norm() / wanted.norm()) < 0.04
    x[1, 2, 3] = NAN
    after = q(x, mask)
    assert bool(after[1].isnan().all())
    for index in (0, 2, 3):
        assert float((after[index] - wanted[index]).norm() / wanted[index].norm()) < 0.04
    mask[3] = -INF  # nothing is left to look at
    assert not q._watched.are_fine([x, mask])
    with torch.no_grad():
        assert torch.equal(torch.isfinite(q(x, mask)[3]), torch.isfinite(net(x, mask)[3]))


def test_results_of_integers_are_refused_where_they_come_from_nan():
    net = nn.Sequential(nn.Linear(16, 4), Call(lambda y: y.argmax(1))).eval()
    x = torch.randn(4, 16)
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False)
    bad = x.clone()
    bad[2, 0] = NAN
    with pytest.raises(InputError, match=r"'input' has NaN or an infinity in the samples \[2\]"):
        q(bad)
    bad[2, 0] = INF
    with torch.no_grad():
        assert torch.equal(q(bad)[2], net(bad)[2])


def test_models_that_read_nan_as_a_missing_value():
    net, x = (
        nn.Sequential(Call(lambda x: torch.nan_to_num(x, 0.5)), nn.Linear(16, 4)).eval(),
        torch.randn(4, 16),
    )
    q = octavo.quantize(net, x, target=TARGET, progress=False)
    x[1, 2] = NAN
    got = q(x)
    with torch.no_grad():
        assert float((got - net(x)).abs().max()) < 0.05


def test_what_a_bad_sample_spoils_in_the_float_model_is_not_made_up():
    """Each node takes the mean with the one before it."""
    net, x = (
        nn.Sequential(Call(lambda x: x + torch.roll(x, 1, 0)), nn.Linear(16, 4)).eval(),
        torch.randn(4, 16),
    )
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False)
    x[1, 0] = NAN
    assert q(x).isnan().all(1).tolist() == [False, True, True, False]


def test_results_whose_samples_stand_elsewhere():
    net, x = (
        nn.Sequential(
            nn.Linear(16, 4), Call(lambda y: (y.transpose(0, 1), y.reshape(-1, 4), y.sum()))
        ).eval(),
        torch.randn(4, 5, 16),
    )
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False)
    x[1, 2] = NAN
    with torch.no_grad():
        for got, wanted in zip(q(x), net(x), strict=True):
            assert torch.equal(got.isnan(), wanted.isnan())


def test_finite_values_whose_sum_overflows(monkeypatch):
    """Without Octavo's own kernels a sum is looked at."""
    q = octavo.quantize(nn.Linear(16, 4), torch.randn(4, 16), target=TARGET, progress=False)
    monkeypatch.setattr(observing, "reads", lambda x: False)
    x = torch.full((4, 16), 1e38)
    assert not q._watched.are_fine([x])
    assert torch.equal(q(x), q.lowered.run(x)[0])


@pytest.mark.filterwarnings("error")
def test_one_thread_looks_without_torch_and_without_the_kernels(monkeypatch):
    """Torch's threads would wait beside those of the library that runs next."""
    q = octavo.quantize(nn.Linear(16, 4), torch.randn(4, 16), target=TARGET, progress=False)
    monkeypatch.setattr(observing, "reads", lambda x: False)
    fine = torch.randn(4, 16, requires_grad=True)
    bad = torch.randn(4, 16).index_fill(0, torch.tensor([1]), NAN)
    both, large = torch.zeros(4, 16), torch.full((4, 16), 1e38)
    both[0, 0], both[3, 3] = INF, -INF
    monkeypatch.setattr(torch.Tensor, "sum", None)
    for x, expected in ((fine, True), (fine.detach().T, True), (bad, False), (both, False)):
        assert q._watched.are_fine([x], threads=1) == expected
    assert not q._watched.are_fine([large], threads=1)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.bias"])
def test_broken_weights_and_biases_are_errors(mode, value, name):
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(4, 16)
    net.get_parameter(name).data.view(-1)[0] = value
    with pytest.raises(CalibrationError, match=f"'{name}' of the model has"):
        octavo.quantize(net, calibration=[x], mode=mode, target=TARGET, progress=False)


def test_a_bias_that_training_broke_is_an_error():
    x = torch.randn(8, 16)
    prepared = octavo.prepare_qat(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), x)
    prepared.train()
    prepared(x)
    prepared.get_parameter("0.bias").data[0] = NAN
    with pytest.raises(CalibrationError, match=r"'0\.bias' of the model has NaN"):
        octavo.convert(prepared)


def test_constant_masks_with_minus_infinity_are_sound():
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.register_buffer("mask", torch.full((5, 5), -INF).triu(1))

        def forward(self, x):
            return (self.layer(x) @ x.transpose(1, 2) + self.mask).softmax(-1)

    x = torch.randn(4, 5, 16)
    q = octavo.quantize(Causal().eval(), calibration=[x], target=TARGET, progress=False)
    assert bool(torch.isfinite(q(x)).all())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.table(tokens))


class States(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.cell = nn.GRU(16, 16, batch_first=True), nn.LSTMCell(16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, state = self.rnn(x)
        return {"y": y, "state": state, "cell": self.cell(y[:, 0])[1], "sum": y.sum()}


FULL = {
    "rows": (NETS["linear"][0], torch.randn(4, 16)),
    "sequences": (NETS["linear"][0], torch.randn(4, 5, 16)),
    "images": (NETS["conv"][0], torch.randn(4, 3, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 8, 3), torch.randn(4, 3, 8, 8)),
    "signals": (lambda: nn.Conv1d(8, 8, 3), torch.randn(4, 8, 9)),
    "tokens": (Tokens, torch.randint(0, 20, (4, 5))),
    "states": (States, torch.randn(4, 5, 16)),
}


CONVS = octavo.QConfigMapping()
for _op in ("conv1d", "conv2d"):
    CONVS.set_object_type(_op, octavo.dynamic_qconfig(TARGET))
EMPTY = [
    *((name, HOW["static"]) for name in FULL),
    *((name, how) for name in ("rows", "sequences", "tokens", "states") for how in HOW.values()),
    *((name, {"mode": "dynamic", "qconfig": CONVS}) for name in ("images", "signals")),
]


def assert_same_form(got, wanted) -> None:
    if isinstance(wanted, dict):
        assert {k: t.shape for k, t in got.items()} == {k: t.shape for k, t in wanted.items()}
        assert float(got["sum"]) == 0.0
    else:
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize(("name", "how"), EMPTY)
def test_an_empty_batch_gives_what_the_float_model_gives(name, how):
    make, x = FULL[name]
    net = make().eval()
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False, **how)
    with torch.no_grad():
        wanted = net(x[:0])
    for runtime in ("reference", "torch"):
        assert_same_form(q.lower(runtime)(x[:0]), wanted)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", FULL)
def test_an_empty_batch_on_other_runtimes(name, runtime):
    pytest.importorskip(runtime)
    make, x = FULL[name]
    net = make().eval()
    q = octavo.quantize(net, calibration=[x], target=TARGET, progress=False).lower(runtime)
    with torch.no_grad():
        assert_same_form(q(x[:0]), net(x[:0]))


def test_steps_behind_a_bad_one_are_right_where_a_sequence_was_taken_for_a_batch():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.GRU(8, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.layer(x)[0])

    torch.manual_seed(0)
    model, x = Steps().eval(), torch.randn(6, 3, 8)
    q = octavo.quantize(model, calibration=[x], progress=False)
    bad = x.clone()
    bad[2, 1] = torch.nan
    found = q(bad)
    assert found[2:, 1].isnan().all()
    torch.testing.assert_close(found[:, [0, 2]], model(x)[:, [0, 2]], atol=0.05, rtol=0)
