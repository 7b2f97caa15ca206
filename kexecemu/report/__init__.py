"""Timelines and outcomes as text and JSON."""
