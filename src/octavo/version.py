"""The version of this package.

Tested in tests/test_project.py.
"""

__version__ = "0.1.0"
