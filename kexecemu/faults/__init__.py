"""Stray writes: what, where, when, and what came of them."""
