"""The page: self-contained, whatever the names are, and with all that is known."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ArtifactError, InputError, MissingExtra
from octavo.reporting.html import anchor


def without_pictures(report: octavo.Report) -> octavo.Report:
    """A report that is quick to write."""
    return replace(report, sensitivity=None, search=None, distributions={})


def test_it_needs_no_network(page: str) -> None:
    addresses = set(re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page))
    assert all(one.startswith(("#", "data:image/")) for one in addresses)
    assert "default-src 'none'" in page
    for picture in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page):
        svg = base64.b64decode(picture).decode()
        assert svg.count("<svg") == 1
        assert "prefers-color-scheme: dark" in svg
        assert "var(--ink)" in svg
        assert "#010f01" not in svg
        assert not re.search(r"(href|src)=\"(?!#)", svg)


def test_names_are_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert") >= 3  # title, heading, a trial


def test_all_sections_are_there(page: str, report: octavo.Report) -> None:
    for section in (
        *(
            "comparison",
            "samples",
            "graph",
            "errors",
            "histograms",
            "sensitivity",
            "search",
            "repair",
            "plan",
        ),
    ):
        assert f'<section id="{section}"' in page
        assert f'href="#{section}"' in page
    assert report.verdict().splitlines()[0].split(",")[0] in page
    assert page.index(report.decision.sentence[:30]) < page.index('class="verdict"')
    layer = report.repairs[0].layer
    assert f'href="#{anchor(layer)}"' in page
    assert page.count(f'id="{anchor(layer)}"') == 1
    assert report.repairs[0].reason in page.replace("&#39;", "'")
    assert "shares the scale of" in page or "fused into" in page


def test_sections_that_nobody_asked_for_are_left_out(report: octavo.Report) -> None:
    page = without_pictures(report).to_html()
    assert 'id="sensitivity"' not in page
    assert 'id="search"' not in page
    assert '<section id="errors"' in page


def test_json(report: octavo.Report) -> None:
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["comparison"]["int8"]["size_bytes"] > 0
    assert data["decision"] == {
        "answer": report.decision.answer,
        "sentence": report.decision.sentence,
    }
    assert data["samples"][0]["index"] == report.samples[0].index
    assert data["repairs"][0]["layer"] == report.repairs[0].layer
    assert len(data["layers"]["rows"]) == len(report.errors.rows)


def test_in_a_notebook_it_is_a_frame_of_its_own(report: octavo.Report) -> None:
    html = without_pictures(report)._repr_html_()
    assert html.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert html.count("<") == 2  # the frame's own tags


def test_results_show_as_tables_in_a_notebook(report: octavo.Report) -> None:
    results = (report.comparison, report.errors, report.sensitivity, report.search, report.plan)
    for result in results:
        assert result is not None
        assert '<table class="octavo">' in result._repr_html_()
    assert report.summary._repr_html_().startswith("<p>100 % of the multiply-adds in int8")


def test_the_file_is_written_whole_or_not_at_all(report: octavo.Report, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    report = without_pictures(report)
    assert report.to_html(file) == file.read_text(encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot write"):
        report.to_html(file / "below a file.html")


@pytest.mark.parametrize(("package", "extra"), [("jinja2", "report"), ("matplotlib", "plots")])
def test_missing_packages(
    report: octavo.Report, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf'pip install "octavo\[{extra}\]"'):
        report.to_html()


def test_data_that_can_be_read_only_once() -> None:
    def stream() -> Iterator[torch.Tensor]:
        yield torch.rand(2, 4)

    net = nn.Linear(4, 2)
    q = octavo.quantize(net, calibration=[torch.rand(2, 4)], target=octavo.host_target())
    with pytest.raises(InputError, match="iterated only once"):
        octavo.report(net, q, stream(), progress=False)
