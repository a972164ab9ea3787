"""How a script says how far it is: one line on stdout, which people read and the runner turns into a bar."""

import re

_LINE = re.compile(r"assay: progress (\d+)/(\d+) ?(.*)")


def progress_line(done: int, total: int, text: str) -> str:
    """`assay: progress 3/10 all_reduce 64 KiB`."""
    return f"assay: progress {done}/{total} {text}"


def parse_progress(line: str) -> tuple[int, int, str] | None:
    """(done, total, text) of a progress line; None for any other line."""
    match = _LINE.match(line.strip())
    return (int(match[1]), int(match[2]), match[3]) if match else None
