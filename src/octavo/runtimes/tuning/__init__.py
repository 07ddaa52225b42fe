"""Tuning: of the ways to run a quantized graph that its plan leaves open, the fastest on this CPU.

A `Variant` says how the graph is run, `CHOICES` what may be changed about it, and `tune` tries one
change after the other. What it found is a `Tuning`, which a file keeps for each kind of CPU.

Tested in tests/runtimes/tuning/test_search.py.
"""

from octavo.runtimes.tuning.record import Trial, Tuning
from octavo.runtimes.tuning.search import tune
from octavo.runtimes.tuning.variant import Variant, lower_variant

__all__ = ["Trial", "Tuning", "Variant", "lower_variant", "tune"]
