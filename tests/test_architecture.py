"""The house's rules: arrows run down, runnable folders are imported by nobody, the package list is the tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
RUNNABLE = ("comms", "launch", "specs", "workloads")

# Lowest first; a module may import its own row and those above it in this list.
FLOORS: list[set[str]] = [
    {"errors", "units", "bandwidth", "presets", "activations", "trainee", "memory_estimate", "step_prediction", "progress", "record", "estimates", "roofline", "options", "suite", "suite_format", "machine", "device", "placement", "located", "throughput", "traffic", "arrival", "latency_model", "bench_tables", "overlap", "device_events", "links", "layout"},
    {"rundir", "recorder", "clock", "channel", "clock_sync", "beacon", "hang_watch", "stack_signal", "world", "scripts", "ranks", "launchers", "sensors"},
    {"limits", "collectives", "transports"},
    {"training"},
    {"scoring", "report"},
    {"doctor", "preflight", "ceiling_cache", "importers", "runner", "outcomes", "time_left", "jobs", "undertaking", "planning", "results", "catalogue", "console"},
    {"cli", "launch_flags", "__main__"},
]  # fmt: skip
TORCH_FREE = [
    "scoring", "report", "options", "suite", "memory_estimate", "step_prediction", "planning", "rundir", "sensors", "doctor.checkup", "ceiling_cache", "preflight.command", "preflight.launching", "importers.folder", "runner", "jobs", "launchers.choice", "results", "catalogue", "console", "cli",
]  # fmt: skip


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "assay").rglob("*.py")):
        room = path.relative_to(ROOT / "assay").parts[0].removesuffix(".py")
        if room != "__init__":
            yield path, room


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_its_floor() -> None:
    assert {room for _, room in modules()} == set().union(*FLOORS)


def test_inside_the_library_arrows_run_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, room in modules()
        for name in imports(path)
        if name.startswith("assay.") and name.split(".")[1] != "__version__"
        and floor_of(name.split(".")[1]) > floor_of(room)
    ]  # fmt: skip
    assert wrong == []


def test_nothing_imports_a_runnable_folder() -> None:
    sources = [path for folder in ("assay", *RUNNABLE, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources
        for name in imports(path)
        if name.split(".")[0] in RUNNABLE or name.startswith(tuple(f"assay.{folder}." for folder in RUNNABLE))
    ]
    assert wrong == []


def test_packages_in_pyproject_are_the_tree() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("assay", *RUNNABLE, "suites")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    expected = {name if name.startswith("assay") else f"assay.{name}" for name in there}
    assert set(tool["packages"]) == expected
    assert set(tool["package-dir"]) == {"assay", *(f"assay.{name}" for name in (*RUNNABLE, "suites"))}


@pytest.mark.parametrize("room", TORCH_FREE)
def test_what_does_not_measure_does_not_import_torch(room: str) -> None:
    code = f"import sys, assay.{room}\nassert not {{'torch', 'transformers'}} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_room_is_a_drawer() -> None:
    names = {path.stem for folder in ("assay", *RUNNABLE) for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
