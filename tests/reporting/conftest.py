from __future__ import annotations

import pytest
import torch
from residual import ResidualNet

import octavo
from octavo.searching import SearchResult, Trial

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="session")
def report() -> octavo.Report:
    """All sections, of a small network; its title is hostile."""
    torch.manual_seed(0)
    net = ResidualNet().eval()
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 5) for _ in range(2)]
    target = octavo.host_target()
    q = octavo.quantize(net, calibration=batches, target=target, progress=False)
    ranked = octavo.sensitivity(
        net, data=batches, calibration=batches, target=target, progress=False
    )
    trials = (
        Trial("static", "the default", (), 97.0, 1.0, 1000, 0.25, seconds=1.0),
        Trial(HOSTILE, "another", ("conv",), 97.9, 0.1, 2000, 0.75, seconds=1.0),
        Trial("failed", "", (), error="cannot"),
    )
    tried = SearchResult(trials[1], None, trials, "fastest", 0.5, 98.0, 4000, None, True, 3.0)
    compared = octavo.compare(net, q, batches, rounds=1, progress=False)
    return octavo.report(
        net,
        q,
        batches,
        title=HOSTILE,
        comparison=compared,
        sensitivity=ranked,
        search=tried,
        progress=False,
    )


@pytest.fixture(scope="session")
def page(report: octavo.Report) -> str:
    """The page of all sections."""
    return report.to_html()
