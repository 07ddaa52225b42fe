"""Weights rounded one block of a model after the other."""
