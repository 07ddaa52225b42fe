"""Pictures of results, as Matplotlib figures: for notebooks, papers and the report.

Each function takes a result and returns a `matplotlib.figure.Figure`, drawn without pyplot:
``figure.savefig("errors.png")``. They need matplotlib: ``pip install "octavo[plots]"``.

All of it is tested in tests/reporting/plots/test_plots.py.
"""

from octavo.reporting.plots.comparison import comparison
from octavo.reporting.plots.distribution import distribution, distributions
from octavo.reporting.plots.layers import layer_errors, sensitivity
from octavo.reporting.plots.palette import PAPER, Palette
from octavo.reporting.plots.search import search
from octavo.reporting.plots.training import History, training

__all__ = [
    "PAPER",
    "History",
    "Palette",
    "comparison",
    "distribution",
    "distributions",
    "layer_errors",
    "search",
    "sensitivity",
    "training",
]
