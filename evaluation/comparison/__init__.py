"""Two sides to a Comparison."""
