"""Files: digests, locks, headers, paths."""
