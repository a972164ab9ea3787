"""Launchers: how N ranks of one script are started, watched and ended."""
