"""How large the crash kernel's memory must be: a capture kernel of the user's own, run in many sizes of it."""
