"""What a quantizer of weights can reach, read from headers and configs alone."""
