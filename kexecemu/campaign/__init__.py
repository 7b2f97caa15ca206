"""Fault campaigns: many faults against one load, each of them accounted for."""
