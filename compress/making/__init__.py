"""Models that are made of what their users have before the first stage: adapters in them, or out of a checkpoint in one file."""
