"""Searching for the fastest or smallest model within an accuracy budget."""

from octavo.search.result import SearchResult
from octavo.search.search import search
from octavo.search.trial import Trial

__all__ = ["SearchResult", "Trial", "search"]
