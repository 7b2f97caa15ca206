"""What is too large to ship, or not ours to ship: real kernels and tools, from Debian's packages into a cache."""
