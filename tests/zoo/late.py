"""A Python module that is imported while a client trains."""

n = 0
