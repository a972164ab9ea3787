"""What the documents say is there, is there."""

import re
from pathlib import Path

import pytest

from assay.options import SCRIPTS, parse_command_line
from assay.scoring.doubts import ADVICE
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_room_stands_in_the_design() -> None:
    design = (ROOT / "docs/design.md").read_text()
    for path in (ROOT / "assay").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in design, path.name
        elif path.is_dir() and any(path.glob("*.py")):
            assert f"`{path.name}/`" in design, path.name


def test_the_documented_doubts_are_all_there_are() -> None:
    page = (ROOT / "docs/metrics.md").read_text().split("## Doubts")[1].split("## ")[0]
    told = re.findall(r"^\| ([a-z0-9 ]+) \|", page, re.MULTILINE)
    assert {name.replace(" ", "_") for name in told} - {"doubt"} == set(ADVICE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_in_script_heads_name_options_that_exist(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / f"{script}.py").read_text()
    assert f"parse_command_line({SCRIPTS[script].__name__}, __doc__)" in text
    used = set(re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", text.split('"""')[1])) - {"--nproc-per-node", "-n"}
    with pytest.raises(SystemExit):
        parse_command_line(SCRIPTS[script], None, ["--help"])  # without the head, which names them all
    told = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", capsys.readouterr().out))
    assert used <= told
