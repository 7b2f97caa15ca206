"""Linux built from Debian's source, with a series of ours applied: booted as a first kernel, stamped on, judged."""
