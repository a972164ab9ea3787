"""Traffic matrices of all_to_all_v: what every rank sends to every other, as shares of the largest buffer."""

import math
from collections.abc import Sequence
from pathlib import Path

Matrix = tuple[tuple[float, ...], ...]
"""Row i, column j: what rank i sends to rank j, in any one unit."""


def uneven(world: int) -> Matrix:
    """A matrix for want of a file: rank i sends 1 … world shares to the ranks from itself on, so no two parts are equal."""
    return tuple(tuple(float(1 + (j - i) % world) for j in range(world)) for i in range(world))


def read_matrix(path: Path) -> Matrix:
    """n lines of n numbers, separated by commas or blanks; # begins a comment.

    Raises ValueError with one sentence (file, line, what was expected).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise ValueError(f"{path}: {reason}; give a file with one line of numbers a rank") from None
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        row = tuple(_share(word, f"{path}: line {number}") for word in words)
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{path}: line {number}: {len(row)} numbers, the lines before have {len(rows[0])}")
        rows.append(row)
    if not rows or len(rows) != len(rows[0]):
        columns = len(rows[0]) if rows else 0
        raise ValueError(f"{path}: {len(rows)} lines of {columns} numbers; expected as many lines as numbers in each")
    if not any(map(any, rows)):
        raise ValueError(f"{path}: every number is 0; at least one rank must send something")
    return tuple(rows)


def _share(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{where}: {word!r} should be a number, 0 or more")
    return value


def counts(matrix: Matrix, count: int) -> list[list[int]]:
    """Whole elements that rank i sends to rank j, scaled so that the largest buffer sent or received has `count` at most."""
    largest = max([sum(row) for row in matrix] + [sum(column) for column in zip(*matrix, strict=True)])
    return [[math.floor(share / largest * count) for share in row] for row in matrix]


def largest_buffer(elements: Sequence[Sequence[int]]) -> int:
    """Elements of the largest buffer that any rank sends or receives."""
    return max([*map(sum, elements), *map(sum, zip(*elements, strict=True))])
