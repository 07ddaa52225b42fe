"""Causal language models as graphs with a cache, which other runtimes write texts with."""
