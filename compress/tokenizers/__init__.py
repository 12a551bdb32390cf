"""Tokenizers, read from their files."""
