"""The runtime ``torch``: int8 kernels that torch ships, matched to the chains of a QDQ graph."""
