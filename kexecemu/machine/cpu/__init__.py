"""The CPUs: how guest code is run, counted and stopped, and the exceptions that it takes."""
