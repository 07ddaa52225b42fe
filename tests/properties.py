"""So many examples of a property, each under the instruction sets of a fixture."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """The settings of a test that takes a fixture which holds for all of its examples."""
    shared = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, suppress_health_check=shared)
