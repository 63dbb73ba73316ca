"""Small guests, assembled here, for the privileged half of the processor."""
