"""What is observed of one side."""
