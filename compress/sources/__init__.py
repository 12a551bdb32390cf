"""Where models and data come from, by name."""
