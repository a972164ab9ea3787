"""Profiles: which formulas and weights make a score, as data."""
