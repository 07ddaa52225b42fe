"""Import it, and what is measured is measured for a moment: no test judges how fast anything is."""

from __future__ import annotations

from importlib import import_module

SECONDS = {
    "octavo.measuring.bench": {"REST_S": 0.001},
    "octavo.measuring.comparison": {"REST_S": 0.001},
    "octavo.runtimes.fastest": {"REST_S": 0.001, "SECONDS": 0.1},
    "octavo.runtimes.timing": {"MAX_ROUNDS": 5},
    "octavo.runtimes.tuning.gain": {"REST_S": 0.001, "SECONDS": 0.1},
    "octavo.searching.measuring": {"LATENCY_S": 0.01},
    "octavo.searching.recipe": {"BUDGET_S": 0.1},
}

for module, own in SECONDS.items():
    for name, seconds in own.items():
        assert hasattr(import_module(module), name)
        setattr(import_module(module), name, seconds)
