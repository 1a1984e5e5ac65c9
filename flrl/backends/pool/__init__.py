"""What all backends with several workers share: the controller, its messages, the workers' loop.

A new transport needs none of it changed.
"""
