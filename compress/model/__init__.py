"""One model, read from JSON, file names and headers."""
