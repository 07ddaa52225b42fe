"""compare, layer_errors and verify of a model with regions."""

from __future__ import annotations

import json

import pytest
import torch
from looking import Looking
from torch import Tensor, nn

import octavo
from octavo.errors import InputError


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Looking().eval()
    data = [(torch.randn(8, 6), torch.arange(8) % 4) for _ in range(3)]
    q = octavo.quantize(model, calibration=data, scope="regions", target=octavo.host_target())
    return model, q, data


def test_layer_errors_are_those_of_each_region(models) -> None:
    model, q, data = models
    found = octavo.layer_errors(model, q, data)
    alone = octavo.layer_errors(model.body, q.body, data)
    rows = {row.tensor: row for row in found.rows}
    assert found.samples == 24
    assert {name.split(".")[0] for name in rows} == {"body", "head"}
    for row in alone.rows:
        assert rows[f"body.{row.tensor}"].sqnr_db == row.sqnr_db


def test_verify_joins_regions(models) -> None:
    _, q, data = models
    for batches in (None, data):
        found = octavo.verify(q, batches, runtimes=["torch"])
        assert found.passed
        (torch_runtime,) = found.runtimes
        assert {layer.layer.split(".")[0] for layer in torch_runtime.layers} == {"body", "head"}


def test_verify_finds_a_region_that_is_off(models, monkeypatch) -> None:
    _, q, _ = models
    found = octavo.verify(q, runtimes=["nowhere"])
    assert not found.passed
    assert found.runtimes[0].error.startswith("body: ")


def test_compare_takes_a_model_with_regions(models, tmp_path) -> None:
    model, q, data = models
    found = octavo.compare(model, q, data, rounds=1, runtimes=["torch", "reference"])
    names = [row.name for row in found.rows]
    assert names == ["fp32", "bf16", "int8 torch", "int8 reference"]
    octavo.save(q, tmp_path / "q")
    rows = {row.name: row for row in found.rows}
    assert rows["int8 torch"].size_bytes == (tmp_path / "q").stat().st_size
    assert "int8 torch: 100 % of the multiply-adds in int8" in found.notes
    assert [row.integers for row in found.rows] == [None, None, 100.0, 100.0]
    assert rows["int8 torch"].sqnr_db > 20


def test_a_region_that_the_data_does_not_reach(models) -> None:
    model, q, data = models
    with pytest.raises(InputError, match="the region 'head' is not called on this data"):
        octavo.layer_errors(model, q, [(x * 1e12, y) for x, y in data])


def test_distributions_are_those_of_each_region(models) -> None:
    model, q, data = models
    found = octavo.distributions(model, q, data)
    alone = octavo.distributions(model.body, q.body, [x for x, _ in data])
    for name, one in alone.items():
        assert found[f"body.{name}"].counts == one.counts
        assert found[f"body.{name}"].tensor == f"body.{name}"
    assert "head.weight" in found


def test_a_report_shows_each_region(models) -> None:
    model, q, data = models
    sensitivity = octavo.sensitivity(
        model, calibration=data, data=data, scope="regions", target=octavo.host_target()
    )
    comparison = octavo.compare(model, q, data, rounds=1)
    found = octavo.report(model, q, data, comparison=comparison, sensitivity=sensitivity)
    rows, edges = found.layout.rows, found.layout.edges
    assert [row.name for row in rows if row.runs == "region"] == ["body", "head"]
    measured = {row.name: row.sqnr_db for row in rows if row.runs == "int8"}
    errors = {row.tensor: row.sqnr_db for row in found.errors.rows}
    assert measured == {name: errors[name] for name in measured}
    last = max(index for index, row in enumerate(rows) if row.name.startswith("body."))
    assert all((edge.start > last) == (edge.end > last) for edge in edges)
    assert found.repairs[0].layer in measured
    assert f'set_module_name("{found.repairs[0].layer}", None)' in found.repair_code
    page = found.to_html()
    assert ">body.0<" in page
    assert "100 % of the multiply-adds in int8" in page
    assert json.loads(json.dumps(found.to_dict()))["summary"]["share"] == 1.0


def test_what_takes_one_graph_says_to_give_a_region(models) -> None:
    _, q, _ = models
    with pytest.raises(InputError, match=r"give one of them, q\.get_submodule\('body'\)"):
        octavo.export_onnx(q, "q.onnx")


class Boxes(Looking):
    """Returns as many rows as are high enough, as a detector does."""

    limit = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y[y[:, 0] > self.limit]


def test_outputs_of_as_many_rows_as_are_found() -> None:
    torch.manual_seed(0)
    model = Boxes().eval()
    data = [torch.randn(64, 6) for _ in range(3)]
    with torch.no_grad():
        highest = Looking.forward(model, data[0])[:, 0].max()
    q = octavo.quantize(model, calibration=data, scope="regions", target=octavo.host_target())
    model.limit = float(highest) - 1e-6  # one row of the first batch
    q.limit = float(highest) + 1.0  # none
    found = octavo.compare(model, q, data[:1], rounds=1, metric=lambda rows, _: float(len(rows)))
    assert (found["fp32"].metric, found["int8"].metric) == (1, 0)
    assert found["int8"].sqnr_db is None
    assert "int8: no SQNR, its outputs have other shapes than fp32's" in found.notes
    assert found.verdict()
    report = octavo.report(model, q, data[:1], comparison=found)
    assert "no SQNR" in report.to_html()
