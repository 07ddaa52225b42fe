"""Octavo's own kernels, called by ctypes in the library that `octavo.numerics.native` loads.

A module a family of kernels. Each checks shapes and types before it calls, and registers its
operator with torch, so that compilers know what it makes.
"""
