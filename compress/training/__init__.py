"""The one training loop, and what it learns from."""
