"""The library that the C in `native/`, beside `src/`, is compiled to, and its kernels for numbers.

Those that run layers are called in `octavo.runtimes.native`.
"""
