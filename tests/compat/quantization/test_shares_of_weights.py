"""What is said of a dynamic model: the share that became integers, and weights that were tied."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.compat import quantization as ours


class Conv1D(nn.Module):
    """A linear layer as GPT-2 writes it: its weight is ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return rows.reshape(*x.shape[:-1], -1)


class Model(nn.Module):
    """A table of 40 x 32 that the head shares, and 2 x 32 x 64 in the middle."""

    def __init__(self, middle: type[nn.Module] = Conv1D) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.up, self.down = middle(32, 64), middle(64, 32)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.table(x)).relu()))


def said(model: nn.Module, spec: object) -> tuple[nn.Module, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        q = ours.quantize_dynamic(model, spec)
    return q, [str(w.message) for w in caught if w.category is octavo.OctavoWarning]


def bytes_of(model: nn.Module) -> int:
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def test_a_tied_table_goes_along_so_that_the_model_does_not_grow() -> None:
    model = Model(nn.Linear).eval()
    q, remarks = said(model, {nn.Linear})
    assert len(remarks) == 1
    assert "'head' shares its weight with 'table', which was not asked for" in remarks[0]
    assert "a rule that keeps 'table' float (None) keeps both" in remarks[0]
    assert bytes_of(q) < 0.35 * bytes_of(model)
    x = torch.randint(0, 40, (2, 5))
    exact = model(x)
    assert float((exact - q(x)).norm() / exact.norm()) < 0.05


def test_a_tied_head_stays_float_where_the_table_is_to() -> None:
    model = Model(nn.Linear).eval()
    spec = {nn.Linear: ours.default_dynamic_qconfig, nn.Embedding: None}
    q, remarks = said(model, spec)
    assert "'head' shares its weight with 'table', which stays float: both do" in remarks[0]
    assert (type(q.head), type(q.table)) == (nn.Linear, nn.Embedding)
    assert bytes_of(q) < bytes_of(model)


def test_the_share_of_the_weights_is_named_where_it_is_small() -> None:
    q, remarks = said(Model().eval(), {nn.Linear})
    assert "only 24% of the weights are integers now; float: Conv1D 76%." in remarks[1]
    x = torch.randint(0, 40, (2, 5))
    assert q(x).shape == (2, 5, 40)
    whole = octavo.quantize(Model().eval(), x, mode="dynamic", progress=False)
    layers = (t for t in whole.plan.tensors.values() if t.kind == "activation")
    assert [t.tensor for t in layers if t.on_integers] == [
        "table",
        "up.addmm",
        "down.addmm",
        "head",
    ]


def test_nothing_is_said_of_a_model_that_is_quantized() -> None:
    both = {
        nn.Linear: ours.default_dynamic_qconfig,
        nn.Embedding: ours.float_qparams_weight_only_qconfig,
    }
    _, remarks = said(Model(nn.Linear).eval(), both)
    assert remarks == []
    _, remarks = said(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), None)
    assert remarks == []


def test_a_model_that_was_called_with_a_computed_weight_is_copied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(64, 8)
    exact = net(x).detach()
    wrapped = ours.QuantWrapper(net).eval()
    wrapped.qconfig = ours.get_default_qconfig("x86")  # type: ignore[assignment]
    prepared = ours.prepare(wrapped)
    prepared(x)
    int8 = ours.convert(prepared)(x)
    assert 20 * torch.log10(exact.norm() / (exact - int8).norm()) > 30
    with pytest.warns(octavo.OctavoWarning, match="remove_weight_norm"):
        assert isinstance(ours.quantize_dynamic(net)[0], nn.Linear)


@pytest.mark.parametrize("training", [False, True])
def test_a_data_parallel_model_is_converted_inside(training: bool) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
    exact = net(x).detach()
    wrapped = ours.QuantWrapper(net).train(training)
    if training:
        wrapped.qconfig = ours.get_default_qat_qconfig("x86")  # type: ignore[assignment]
        parallel = nn.DataParallel(ours.prepare_qat(wrapped))
    else:
        wrapped.qconfig = ours.get_default_qconfig("x86")  # type: ignore[assignment]
        parallel = nn.DataParallel(ours.prepare(wrapped))
    parallel(x)
    int8 = ours.convert(parallel.eval())(x)
    assert 20 * torch.log10(exact.norm() / (exact - int8).norm()) > 30
