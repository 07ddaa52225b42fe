"""``python -m octavo``, for where the command is not on the path.

Tested in tests/cli/test_output.py.
"""

from __future__ import annotations

from octavo.cli import main

if __name__ == "__main__":
    main()
