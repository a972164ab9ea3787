"""Outputs of other communication benchmarks, turned into records of ours with the same formulas."""
