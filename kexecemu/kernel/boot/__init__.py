"""The boot, from the firmware to the first process, and the state it leaves."""
