"""Modules of odd shape, as users write them, and what each engine makes of them."""
