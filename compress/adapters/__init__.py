"""LoRA adapters: what they say, which weights they change, and the model with them in it."""
