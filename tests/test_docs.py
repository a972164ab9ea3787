"""What the documents say is there, is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from assay.scoring.doubts import ADVICE
from tests.conftest import ROOT, environment

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


def test_commands_in_script_heads_name_options_that_exist() -> None:
    for script in ("comms/bench.py", "specs/bench.py", "specs/limits.py", "specs/noise.py", "workloads/pretrain.py"):
        text = (ROOT / script).read_text()
        used = set(re.findall(r"(?<=\s)(--[a-z-]+)", text.split('"""')[1])) - {"--nproc-per-node"}
        argv = [sys.executable, str(ROOT / script), "--help"]
        told = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=True).stdout
        assert used
        assert all(option in told for option in used), script
