"""Audits: sweeps whose jobs become one table and one picture."""
