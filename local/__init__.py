"""make run: everything on this machine."""
