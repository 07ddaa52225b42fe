"""Measurements of Octavo against its peers; see README.md in this folder.

``python -m benchmarks`` runs them all, ``python -m benchmarks.speed`` one of them.
"""
