"""The second kernel's side of a crash."""
