"""Octavo's own kernels: the library that `native/` in the sources is compiled to, by ctypes.

A module a family of kernels. Each checks shapes and types before it calls, and registers its
operator with torch, so that compilers know what it makes.
"""
