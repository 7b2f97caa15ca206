"""A board: RAM, CPUs, page tables, exceptions, devices. Knows no Linux."""
