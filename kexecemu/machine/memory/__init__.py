"""RAM, devices on the bus, and the page tables that lead there."""
