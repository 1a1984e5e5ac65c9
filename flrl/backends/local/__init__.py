"""Several worker processes on this machine."""
