"""An arm64 crash lab: see, break and measure kexec and kdump."""
