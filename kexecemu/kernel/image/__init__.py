"""A loaded image: its segments, digests, purgatory, and how its pages are protected."""
