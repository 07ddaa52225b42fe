"""Pictures of results, as Matplotlib figures: for notebooks, papers and the report.

Each function takes a result and returns a `matplotlib.figure.Figure`, drawn without pyplot:
``figure.savefig("errors.png")``. They need matplotlib: ``pip install "octavo[plots]"``.
"""

from octavo.plots.comparison import comparison
from octavo.plots.distribution import distribution, distributions
from octavo.plots.layers import layer_errors, sensitivity
from octavo.plots.palette import PAPER, Palette
from octavo.plots.search import search
from octavo.plots.training import History, training

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
