"""The model of the first kernel, in the order a kernel does it."""
