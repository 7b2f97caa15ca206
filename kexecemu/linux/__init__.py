"""A real Linux on the board: as the first kernel, and as the one that captures."""
