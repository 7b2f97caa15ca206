"""One crash: the first kernel is left, a purgatory checks, a capture kernel takes the dump; and what came of it."""
