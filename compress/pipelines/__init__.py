"""Diffusers' pipelines, read from JSON and the installed source."""
