"""Memory as the kernel sees it at boot: memblock, zones, the crash region, the linear map."""
