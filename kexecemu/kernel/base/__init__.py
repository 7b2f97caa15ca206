"""What a kernel is told and built as: its era, configuration, command line, address space."""
