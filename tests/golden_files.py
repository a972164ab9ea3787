"""Outputs of other tools that the tests read, of our own writing after the documented formats."""

from pathlib import Path
from typing import Any

from assay.importers.folder import PARSERS, import_file
from assay.importers.output import Given, Output, Row
from assay.record import read_rank_file
from assay.scoring import imported
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


def parsed(name: str, **more: Any) -> Output:
    tool = tool_of(name)
    return PARSERS[tool](
        text_of(name), name, Given(**more) if more else GIVEN.get(name, Given(8 if tool == "osu" else None))
    )


def means(output: Output) -> list[Row]:
    return [row for row in output.rows if row.statistic == "mean"]


def derived(tmp_path: Path, name: str, **more: Any) -> list[Figure]:
    run = import_file(tool_of(name), GOLDEN / name, tmp_path / "run", **more)
    (records,) = run.glob("cases/*/attempt-1/rank-*.jsonl")
    file = read_rank_file(records)
    assert file.header is not None
    assert not file.garbage
    figures, curves = imported.derive([file], {}, [])
    assert curves == []
    return figures
