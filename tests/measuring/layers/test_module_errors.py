"""`layer_errors`, `distributions` and `report` of models with modules of `octavo.nn`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built
from torch import Tensor, nn

import octavo
from octavo.errors import InputError


class Net(nn.Module):
    """Branches on values, so that no graph holds it; its recurrent layer returns states too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.recurrent(self.table(x))
        h, _ = self.attention(h, h, h, need_weights=False)
        if h.sum() > 1e9:
            h = -h
        return self.head(self.norm(h))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches(count: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 50, (4, 7)) for _ in range(count)]


def decibels(exact: Tensor, found: Tensor) -> float:
    noise = (exact - found).double().square().sum() / exact.double().square().sum()
    return -10 * math.log10(noise)


def inputs_of(model: nn.Module, path: str, data: list[Tensor]) -> list[Any]:
    """What a submodule is called with."""
    seen: list[Any] = []
    hook = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        for batch in data:
            model(batch)
    hook.remove()
    return seen


@pytest.mark.parametrize("mode", ["weight_only", "dynamic"])
def test_a_modules_error_is_that_of_its_result_on_exact_arguments_and_on_those_it_gets(
    mode: str,
) -> None:
    model, data = net(), batches()
    q = octavo.quantize(model, scope="modules", mode=mode)
    found = {row.tensor: row for row in octavo.layer_errors(model, q, data).rows}
    assert list(found) == [
        *("table.weight", "table"),
        *("recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "recurrent", "attention"),
        *("head.weight", "head"),
    ]
    for path in ("recurrent", "attention", "head"):
        layer, own = model.get_submodule(path), q.get_submodule(path)
        exact, alone, through = [], [], []
        with torch.no_grad():
            for args, kwargs in inputs_of(model, path, data):
                exact.append(first(layer(*args, **kwargs)))
                alone.append(first(own(*args, **kwargs)))
            for args, kwargs in inputs_of(q, path, data):
                through.append(first(own(*args, **kwargs)))
        row = found[path]
        assert row.sqnr_db == pytest.approx(decibels(torch.cat(exact), torch.cat(alone)), abs=0.01)
        together = decibels(torch.cat(exact), torch.cat(through))
        assert row.accumulated_sqnr_db == pytest.approx(together, abs=0.01)
        assert (row.low, row.high) == pytest.approx(
            (float(torch.cat(exact).min()), float(torch.cat(exact).max()))
        )


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def test_a_weights_error_is_that_of_its_integers() -> None:
    model = net()
    qconfig = octavo.weight_only_qconfig(bits=4, group_size=8)
    q = octavo.quantize(model, scope="modules", qconfig=qconfig, only=["head"])
    (row, _) = octavo.layer_errors(model, q, batches()).rows
    exact, rounded = model.head.weight.detach(), q.head.weight.to(torch.float32)
    assert row.sqnr_db == pytest.approx(decibels(exact, rounded), abs=0.01)
    assert row.values == "int4 per-group-of-8 symmetric"
    # Each group's largest value is the highest or the lowest integer, so that all are in use.
    assert (row.clipped, row.unused) == (0.0, 0.0)


def test_distributions_are_those_of_the_weights_with_the_range_of_the_widest_channel() -> None:
    model = net()
    q = octavo.quantize(model, scope="modules", mode="weight_only")
    found = octavo.distributions(model, q, batches())
    assert list(found) == [
        *("table.weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "head.weight")
    ]
    seen = found["head.weight"]
    assert sum(seen.counts) == model.head.weight.numel()
    assert seen.clip_high == pytest.approx(float(model.head.weight.detach().abs().max()))


def test_a_report_shows_each_module_and_says_how_to_leave_the_worst_in_float(
    tmp_path: Path,
) -> None:
    model, data = net(), batches()
    q = octavo.quantize(model, scope="modules", mode="dynamic")
    comparison = octavo.compare(model, q, data, rounds=1, progress=False)
    report = octavo.report(model, q, data, comparison=comparison, progress=False)
    assert [row.name for row in report.layout.rows] == ["table", "recurrent", "attention", "head"]
    page = report.to_html(tmp_path / "report.html")
    assert "recurrent" in page
    assert "on  (target" not in page  # a module runs on no runtime
    worst = octavo.layer_errors(model, q, data).worst(3)
    dynamic = [row.tensor for row in worst]
    assert [repair.layer for repair in report.repairs] == dynamic
    names = {"octavo": octavo, "model": model, "example": (data[0],)}
    exec(report.repair_code, names)  # noqa: S102  (the code that people are told to run)
    again: Any = names["q"]
    floats = [type(again.get_submodule(path)) for path in dynamic]
    assert floats == [type(model.get_submodule(path)) for path in dynamic]


def test_a_model_of_transformers_is_read_with_its_labels_and_padding() -> None:
    model = built("BertForSequenceClassification", vocab_size=60, num_labels=3)
    q = octavo.quantize(model, scope="modules", mode="weight_only")
    ids = torch.randint(0, 60, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7], [2]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}
    found = octavo.layer_errors(model, q, [batch])
    assert found.samples == 4
    last = found.rows[-1]
    with torch.no_grad():
        exact, rounded = (m(ids, attention_mask=mask).logits for m in (model, q))
    assert last.tensor == "classifier"
    assert last.accumulated_sqnr_db == pytest.approx(decibels(exact, rounded), abs=0.05)


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 5)


class Shallow(Net):
    def __init__(self) -> None:
        super().__init__()
        del self.head


def test_a_model_that_was_not_quantized_is_refused_by_its_first_tensor() -> None:
    q = octavo.quantize(net(), scope="modules", mode="weight_only")
    with pytest.raises(InputError, match=r"'head\.weight' is \[5, 16\], .*\[4, 16\]"):
        octavo.layer_errors(Wider().eval(), q, batches())
    with pytest.raises(InputError, match="has no module 'head'"):
        octavo.layer_errors(Shallow().eval(), q, batches())
    moved = net()
    nn.init.constant_(moved.norm.weight, 2.0)
    with pytest.raises(InputError, match=r"'norm\.weight' differs"):
        octavo.layer_errors(moved, q, batches())
    with pytest.raises(InputError, match="no data"):
        octavo.layer_errors(net(), q, [])


class Deciding(nn.Module):
    """Its second layer is called where the first one's result says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(1, 1)
        self.first.weight.data = torch.tensor([[1.0, 0.3]])  # 7 and 2 steps of 1 / 7

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return y if y.sum() > 1.295 else self.second(y)


def test_a_module_that_is_called_otherwise_in_the_quantized_model_is_told() -> None:
    model = Deciding().eval()
    qconfig = octavo.weight_only_qconfig(bits=4)
    q = octavo.quantize(model, scope="modules", qconfig=qconfig, only=["first", "second"])
    with pytest.raises(InputError, match="'second' is called otherwise"):
        octavo.layer_errors(model, q, [torch.ones(1, 2)])
