"""The ``torch`` runtime: int8 kernels that torch ships, matched to the chains of a QDQ graph."""

from octavo.runtimes.runtime import Runtime
from octavo.runtimes.torch.int8 import lower

RUNTIME = Runtime(lower, options=("joined", "channels_last", "programs"))
