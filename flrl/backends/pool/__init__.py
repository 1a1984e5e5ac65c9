"""The parts common to all backends with several workers: the controller, its messages, the workers' loop.

A new transport implements `Hub` and `Link`, and changes nothing here.
"""
