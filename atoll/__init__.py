"""Atoll: server virtualization in Python."""

__version__ = "0.1.0"
