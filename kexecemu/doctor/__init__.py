"""Will the crash kernel of a machine load, boot and take a dump: what is asked of the machine, and what that says."""
