"""Ceilings are reused only where nothing that could change them has changed, and the report says so."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay import ceiling_cache
from assay.doctor.checkup import Checkup
from assay.doctor.finding import Finding, State
from assay.errors import BadInput
from assay.options import LimitsOptions
from assay.suite import Case, build_suite, parse_suite
from tests.conftest import assay

SUITE = """
assay: 1
name: s
limits: false
doctor: false
cases:
  - name: limits-2
    script: specs/limits
    world: 2
    reuse_within: 3600
    options: {seconds: 0.05, gemm_size: 64, copy_bytes: 64KiB, device: cpu}
  - {name: c, script: comms/bench, world: 2, options: {ops: broadcast, min: 1KiB, max: 1KiB, budget: 0.02, device: cpu}}
"""


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def case(tmp_path: Path, cache: Mapping[str, str]) -> Case:
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / "rank-00000.jsonl").write_text("records\n")
    (attempt / "stdout.log").write_text("not kept\n")
    made = Case("limits-1", "specs/limits", 1, 60.0, LimitsOptions(), 3600.0)
    ceiling_cache.keep(made, ceiling_cache.identity(made, cache, None), attempt, cache, None)
    return made


def recall(case: Case, env: Mapping[str, str], checkup: Checkup | None = None) -> ceiling_cache.Entry | None:
    return ceiling_cache.recall(case, ceiling_cache.identity(case, env, checkup), env)


def checkup(state: State, check: str = "other load", found: str = "x") -> Checkup:
    return Checkup((Finding(check, state, found, "y"),), (), None, 1.0, "2026-01-01T00:00:00+0000")


def test_what_was_measured_lately_is_found_again(case: Case, cache: Mapping[str, str], tmp_path: Path) -> None:
    entry = recall(case, cache)
    assert entry
    assert 0 <= entry.age < 60
    assert "not measured in this run" in entry.sentence
    there = tmp_path / "new"
    there.mkdir()
    assert ceiling_cache.copy_to(entry, there)
    assert sorted(path.name for path in there.iterdir()) == ["rank-00000.jsonl", "reused.json"]


def test_anything_that_could_change_a_ceiling_makes_it_another(case: Case, cache: Mapping[str, str]) -> None:
    assert recall(replace(case, world=2), cache) is None
    assert recall(replace(case, options=LimitsOptions(seconds=9.0)), cache) is None
    assert recall(case, {**cache, "OMP_NUM_THREADS": "2"}) is None
    assert recall(case, {**cache, "DNNL_MAX_CPU_ISA": "SSE41"}) is None
    assert recall(replace(case, name="other"), {**cache, "SLURM_JOB_ID": "7"}), "a name changes nothing"
    assert recall(replace(case, reuse_within=0.0), cache) is None


@pytest.mark.parametrize(
    "change",
    [
        {"boot": "another boot"},
        {"sources": "another revision"},
        {"host": {"name": "another host"}},
        {"accelerators": ["0000:01:00.0 0x10de:0x20b2"]},
        {"software": {"torch": "0.1"}},
        {"cores": [17]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_entry_of_other_circumstances_is_not_taken(
    case: Case, cache: Mapping[str, str], change: dict[str, Any]
) -> None:
    (path,) = Path(cache["XDG_CACHE_HOME"]).rglob("entry.json")
    document = json.loads(path.read_text())
    document["identity"].update(change)
    path.write_text(json.dumps(document))
    assert recall(case, cache) is None


@pytest.mark.parametrize("age", [3700.0, -100.0], ids=["too old", "from the future"])
def test_an_entry_of_another_time_is_dropped(case: Case, cache: Mapping[str, str], age: float) -> None:
    (path,) = Path(cache["XDG_CACHE_HOME"]).rglob("entry.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "measured": time.time() - age}))
    assert recall(case, cache) is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 1}', '{"measured": "x"}'])
def test_a_broken_entry_is_no_entry(case: Case, cache: Mapping[str, str], text: str) -> None:
    (path,) = Path(cache["XDG_CACHE_HOME"]).rglob("entry.json")
    path.write_text(text)
    assert recall(case, cache) is None


def test_a_cache_that_cannot_be_written_is_no_failure(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    full = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    ceiling_cache.keep(case, ceiling_cache.identity(case, full, None), tmp_path / "attempt", full, None)


def test_what_was_measured_on_an_unfit_machine_is_not_kept(case: Case, tmp_path: Path) -> None:
    states: list[tuple[State, bool]] = [("bad", False), ("warn", True)]
    for state, kept in states:
        env = {"XDG_CACHE_HOME": str(tmp_path / state)}
        found = checkup(state)
        ceiling_cache.keep(case, ceiling_cache.identity(case, env, found), tmp_path / "attempt", env, found)
        assert (recall(case, env, found) is not None) == kept


def test_another_governor_or_quota_makes_it_another(case: Case, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "own")}
    slow, quick = (checkup("good", "frequency governor", found) for found in ("powersave", "performance"))
    ceiling_cache.keep(case, ceiling_cache.identity(case, env, slow), tmp_path / "attempt", env, slow)
    assert recall(case, env, slow)
    assert recall(case, env, quick) is None


def test_an_entry_that_vanishes_while_it_is_copied_is_none(
    case: Case, cache: Mapping[str, str], tmp_path: Path
) -> None:
    entry = recall(case, cache)
    assert entry
    (entry.folder / "rank-00000.jsonl").unlink()
    there = tmp_path / "new"
    there.mkdir()
    assert not ceiling_cache.copy_to(entry, there)
    assert list(there.iterdir()) == []


def test_a_user_without_a_home_has_no_cache(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    assert ceiling_cache.cache_folder({}) is None
    assert recall(case, {}) is None


def test_only_specs_can_be_reused() -> None:
    suite = parse_suite(SUITE, "s.yaml")
    again = build_suite(suite.document(), "run.json")
    assert [(one.name, one.reuse_within) for one in again.cases] == [("limits-2", 3600.0), ("c", 0.0)]
    added = parse_suite(
        SUITE.replace("limits: false", "limits: true\nlimits_max_age: 60").replace("-2", "-x"), "s.yaml"
    )
    assert [(one.name, one.reuse_within) for one in added.cases] == [
        ("limits-2", 60.0),
        ("limits-x", 3600.0),
        ("c", 0.0),
    ]
    with pytest.raises(BadInput, match="comms/bench is measured in every run"):
        parse_suite(SUITE.replace("script: comms/bench,", "script: comms/bench, reuse_within: 5,"), "s.yaml")


def test_the_second_run_takes_the_ceilings_of_the_first_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    # Time stolen by a hypervisor would be a reason not to keep them.
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "ASSAY_SENSORS": "off"}

    def run(*more: str) -> tuple[dict[str, Any], str]:
        before = set((tmp_path / "runs").glob("*"))
        done = assay("run", "s.yaml", *more, cwd=tmp_path, **own)
        assert done.returncode == 0, done.stderr
        (folder,) = set((tmp_path / "runs").glob("*")) - before
        status = json.loads((folder / "cases/limits-2/attempt-1/status.json").read_text())
        return status, (folder / "report.md").read_text()

    assert run()[0]["phase"] == "run"
    status, report = run()
    assert status["phase"] == "reused"
    assert "not measured in this run: taken from" in report
    assert "Share of ceiling" in report
    assert run("--fresh")[0]["phase"] == "run"
