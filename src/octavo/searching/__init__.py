"""Searching for the fastest or smallest model within an accuracy budget."""

from octavo.searching.result import SearchResult
from octavo.searching.search import search
from octavo.searching.trial import Trial

__all__ = ["SearchResult", "Trial", "search"]
