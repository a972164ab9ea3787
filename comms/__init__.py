"""Scripts that measure collectives."""
