"""Searching for the fastest or smallest model within an accuracy budget.

All of it is tested in tests/searching/test_search.py.
"""

from octavo.searching.result import SearchResult
from octavo.searching.search import search
from octavo.searching.trial import Trial

__all__ = ["SearchResult", "Trial", "search"]
