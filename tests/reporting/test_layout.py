from __future__ import annotations

import torch
from torch import Tensor, nn

import octavo
from octavo.reporting.layout import LANES, Edge, _laned, layout


def test_rows_are_kernels_and_edges_who_reads_whom(report: octavo.Report) -> None:
    rows = {row.name: row for row in report.layout.rows}
    names = list(rows)
    assert names[0] == "x"
    assert names[-1] == "fc"
    assert rows["x"].runs == "input"
    (first,) = (row for row in report.layout.rows if row.op == "conv2d + relu")
    (second,) = (row for row in report.layout.rows if row.op == "conv2d + add + relu")
    ends = {(names[edge.start], names[edge.end]) for edge in report.layout.edges}
    assert {("x", first.name), (first.name, second.name)} <= ends
    assert len(ends) == len(names) - 1  # the shortcut is the same pair of kernels
    errors = {row.tensor: row for row in report.errors.rows}
    assert second.sqnr_db == errors[second.name].sqnr_db
    assert second.accumulated_db == errors[second.name].accumulated_sqnr_db


def test_sizes_are_no_edges() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.conv(x).relu().reshape(x.shape[0], -1))
            return y

    net, x = Flat().eval(), torch.randn(4, 3, 8, 8)
    q = octavo.quantize(net, calibration=[x], target=octavo.host_target(), progress=False)
    errors = octavo.layer_errors(net, q, [x], progress=False)
    found = layout(q.graph, q.plan, errors)
    assert all(edge.end == edge.start + 1 for edge in found.edges)


def test_edges_that_would_cross_take_lanes_of_their_own() -> None:
    assert _laned([(0, 1), (1, 2), (0, 2), (2, 4)]) == (
        *(Edge(0, 1, 0), Edge(1, 2, 0), Edge(0, 2, 1), Edge(2, 4, 1)),
    )
    inner, outer = _laned([(1, 3), (0, 4)])
    assert (inner.lane, outer.lane) == (1, 2)


def test_lanes_are_bounded() -> None:
    nested = [(n, 40 - n) for n in range(15)]
    assert max(edge.lane for edge in _laned(nested)) == LANES


def test_layers_in_a_row_in_bfloat16_are_all_there() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))).eval()
    x = torch.randn(2, 3, 8, 8)
    mapping = octavo.QConfigMapping()
    for name in ("1", "2"):
        mapping.set_module_name(name, torch.bfloat16)
    q = octavo.quantize(
        net, calibration=[x], qconfig=mapping, target=octavo.host_target(), progress=False
    )
    found = layout(q.graph, q.plan, octavo.layer_errors(net, q, [x], progress=False))
    runs = [(row.name, row.runs) for row in found.rows]
    assert runs[1:] == [("0", "int8"), ("1", "bfloat16"), ("2", "bfloat16"), ("3", "int8")]
    assert found.edges == tuple(Edge(start, start + 1, 0) for start in range(4))
