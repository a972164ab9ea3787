"""Baselines: figures to score against, as data with their source."""
