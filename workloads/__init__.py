"""Scripts that train models."""
