"""Tests of malicious clients and servers."""
