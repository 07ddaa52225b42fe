"""The zoo: networks of many kinds that Octavo must capture, quantize and run.

All have random weights, so nothing is downloaded, and are small or run on small inputs. Adding one
is a row in the table of its family.
"""

import torchvision_shim  # noqa: F401  (before anything imports torchvision, timm or transformers)

from zoo import (
    from_timm,
    from_torch,
    from_torchvision,
    from_transformers,
    in_parts,
    other_kinds,
    sequences,
)
from zoo.entry import Call, Entry, arguments

ENTRIES: tuple[Entry, ...] = (
    *from_torch.ENTRIES,
    *sequences.ENTRIES,
    *other_kinds.ENTRIES,
    *from_torchvision.ENTRIES,
    *from_transformers.ENTRIES,
    *from_timm.ENTRIES,
)
IN_PARTS: tuple[Entry, ...] = in_parts.ENTRIES  # no graph holds one of these whole
BY_NAME = {entry.name: entry for entry in ENTRIES}

__all__ = ["BY_NAME", "ENTRIES", "IN_PARTS", "Call", "Entry", "arguments"]
