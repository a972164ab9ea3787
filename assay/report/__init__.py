"""Reports of a run: one HTML page, the same facts in Markdown, and a short summary for the terminal. No torch."""
