"""Commands of the command line that are too large for cli.py, one a file; cli.py registers them."""
