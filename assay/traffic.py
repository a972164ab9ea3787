"""Traffic matrices of all_to_all_v: what every rank sends to every other, as shares of the largest buffer."""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""[ranks, ranks]. Row i, column j: what rank i sends to rank j, in any one unit."""


def uneven(world: int) -> Matrix:
    """A matrix for want of a file: rank i sends 1 … world shares to the ranks from itself on, so no two parts are equal."""
    rank = np.arange(world)
    return np.asarray(1 + (rank[None, :] - rank[:, None]) % world, dtype=np.float64)


def read_matrix(path: Path) -> Matrix:
    """n lines of n numbers, separated by commas or blanks; # begins a comment.

    Raises ValueError with one sentence (file, line, what was expected).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise ValueError(f"--matrix {path}: {reason}; give a file with one line of numbers a rank") from None
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        row = tuple(_share(word, f"--matrix {path}: line {number}") for word in words)
        if rows and len(row) != len(rows[0]):
            raise ValueError(
                f"--matrix {path}: line {number}: {len(row)} numbers, the lines before have {len(rows[0])}"
            )
        rows.append(row)
    if not rows or len(rows) != len(rows[0]):
        columns = len(rows[0]) if rows else 0
        raise ValueError(
            f"--matrix {path}: {len(rows)} lines of {columns} numbers; expected as many lines as numbers in each"
        )
    if not any(map(any, rows)):
        raise ValueError(f"--matrix {path}: every number is 0; at least one rank must send something")
    return np.array(rows)


def _share(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{where}: {word!r} should be a number, 0 or more")
    return value


def digest(matrix: Matrix) -> str:
    """Twelve hexadecimal digits that tell a traffic from another, whatever its unit (of sha256 over its shares)."""
    return hashlib.sha256(repr((matrix / matrix.max()).tolist()).encode()).hexdigest()[:12]


def counts(matrix: Matrix, count: int) -> NDArray[np.int64]:
    """Whole elements that rank i sends to rank j, scaled so that the largest buffer sent or received has `count` at most."""
    largest = max(matrix.sum(axis=0).max(), matrix.sum(axis=1).max())
    return np.asarray(np.floor(matrix / largest * count), dtype=np.int64)
