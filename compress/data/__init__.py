"""Careful readers of what users hand over."""
