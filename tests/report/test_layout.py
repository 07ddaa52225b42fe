from __future__ import annotations

import octavo
from octavo.report.layout import LANES, Edge, _laned


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


def test_edges_that_would_cross_take_lanes_of_their_own() -> None:
    assert _laned([(0, 1), (1, 2), (0, 2), (2, 4)]) == (
        *(Edge(0, 1, 0), Edge(1, 2, 0), Edge(0, 2, 1), Edge(2, 4, 1)),
    )
    inner, outer = _laned([(1, 3), (0, 4)])
    assert (inner.lane, outer.lane) == (1, 2)


def test_lanes_are_bounded() -> None:
    nested = [(n, 40 - n) for n in range(15)]
    assert max(edge.lane for edge in _laned(nested)) == LANES
