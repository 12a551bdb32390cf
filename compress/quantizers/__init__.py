"""Libraries that quantize, each in a process of its own: `own_process.serve` around one piece of work."""
