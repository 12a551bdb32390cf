"""Torch to engines: what all builds share."""
