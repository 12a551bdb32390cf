"""A recipe to a plan; runs no model."""
