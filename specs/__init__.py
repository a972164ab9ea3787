"""Scripts that measure what the hardware can do."""
