"""assay: benchmarks for distributed training and communication on AI accelerators."""

__version__ = "0.1.0"
