"""Outputs of other tools that the tests read, of our own writing after the documented formats."""

from pathlib import Path

from assay.importers.folder import PARSERS
from assay.importers.output import Given
from assay.scoring.result import Figure

GOLDEN = Path(__file__).parent / "golden"
GIVEN = {"nccl-tests-unnamed.txt": Given(op="all_reduce")}
EVERY = sorted(path.name for path in GOLDEN.iterdir())


def tool_of(name: str) -> str:
    return next(tool for tool in PARSERS if name.startswith(tool))


def text_of(name: str) -> str:
    return (GOLDEN / name).read_text()


def one(figures: list[Figure], metric: str, **tags: object) -> Figure:
    (found,) = [
        figure
        for figure in figures
        if figure.metric == metric and all(figure.tags.get(key) == value for key, value in tags.items())
    ]
    return found
