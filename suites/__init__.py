"""Suites that come with assay; a suite is a YAML file, see docs/suites.md."""
