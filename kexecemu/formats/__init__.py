"""Bytes to objects and back, without state."""
