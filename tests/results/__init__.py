"""Tests of flrl.results."""
