"""The mathematics of sets of features."""
