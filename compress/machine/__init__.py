"""What this machine and its libraries are, read without importing them."""
