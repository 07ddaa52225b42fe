"""The ``executorch`` runtime: programs for phones, as XNNPACK runs them here."""

from octavo.runtimes.executorch.meaning import as_xnnpack_rounds
from octavo.runtimes.executorch.package import package
from octavo.runtimes.executorch.programs import lower
from octavo.runtimes.runtime import Runtime

RUNTIME = Runtime(
    lower,
    options=("batch",),
    bfloat16=False,
    islands=False,
    candidate=False,
    package=package,
    targets=("executorch",),
    sized=True,
    meaning=as_xnnpack_rounds,
)
