"""Stray writes: who writes what, where and when."""
