"""``octavo doctor``.

Tested in tests/measuring/test_doctor.py.
"""

from __future__ import annotations

from octavo.cli import options
from octavo.cli.app import show


def doctor(as_json: options.Json = False) -> None:
    """What this CPU and these packages can do, and what would make models faster here.

    **Example:** `octavo doctor`
    """
    from octavo.measuring.doctor import examine

    show(examine(), as_json)
