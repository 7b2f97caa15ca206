"""Linux built from Debian's source, with a series of ours applied."""
