"""The whole checkup: a real one of this machine, its document, its screen, its part of the report."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.doctor.accelerator import Gpus
from assay.doctor.checkup import Checkup, examine, judge
from assay.doctor.finding import STATES, Finding, State
from assay.doctor.host import Host
from assay.doctor.noise import PAIRS, PRODUCTS, STEPS, Noise, whole_case
from assay.doctor.screen import LINES, WIDTH, render
from assay.doctor.snapshot import take
from assay.doctor.trial import Trial
from assay.report.fitness import fitness_part
from tests.conftest import ROOT, environment

PARTS = [Noise(PRODUCTS, ((0.1, 0.101),) * PAIRS), Noise(STEPS, ((0.2, 0.19),) * PAIRS)]
NOISES = (*PARTS, whole_case(PARTS))
WARN = Finding("boost", "warn", "on", "turn it off")
BAD = Finding("swap", "bad", "12 pages moved", "stop it")
UNKNOWN = Finding("heat", "unknown", "no counters")


def checkup(*findings: Finding) -> Checkup:
    return Checkup(findings, NOISES, "Some CPU (cpu)", 6.5, "2026-02-03T04:05:06+0100")


def stored(found: Checkup) -> dict[str, Any]:
    """As it comes back from a file."""
    document: dict[str, Any] = json.loads(json.dumps(found.document(), allow_nan=False))
    return document


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Checkup:
    """This machine, examined as a rank of somebody's job would do it: the launcher's variables must not matter."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
            patch.setenv(name, value)
        return examine(tmp_path_factory.mktemp("runs"), "cpu", limit=120)


def test_this_machine_gets_a_verdict(real: Checkup) -> None:
    assert real.verdict in ("fit", "fit with doubts", "unfit")
    assert [noise.work for noise in real.noises] == [noise.work for noise in NOISES], real.findings
    assert real.device is not None
    assert real.device.endswith("(cpu)")
    assert 0 < real.seconds < 130
    names = [finding.check for finding in real.findings]
    assert len(names) == len(set(names)) >= 25
    order = [STATES.index(finding.state) for finding in real.findings]
    assert order == sorted(order), "what weighs most stands first"
    assert all(finding.advice for finding in real.findings if finding.state in ("warn", "bad"))
    document = stored(real)
    assert (document["verdict"], document["device"]) == (real.verdict, real.device)
    assert [noise["ratios"] for noise in document["noise"]] == [list(noise.ratios) for noise in real.noises]
    assert [Finding(**finding) for finding in document["findings"]] == list(real.findings)


def test_the_doctor_needs_no_torch() -> None:
    rooms = ("checkup", "screen", "trial")
    code = "import sys\n" + "".join(f"import assay.doctor.{room}\n" for room in rooms)
    code += "import assay.report.fitness\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_noise_run_that_hangs_makes_the_machine_unfit(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600\n")
    python.chmod(0o755)
    found = examine(tmp_path, "cpu", root=tmp_path, env={}, python=str(python), limit=0.5)
    assert found.verdict == "unfit"
    assert found.sentence == "Unfit: do not measure here before this is mended: noise."
    assert found.noises == ()
    assert found.seconds < 60
    assert stored(found)["noise"] == []


def test_a_device_that_is_not_there_is_bad_input_and_no_verdict(tmp_path: Path) -> None:
    # Not only the examination: the command's exit code is what scripts see.
    argv = [sys.executable, "-m", "assay", "doctor", "--device", "no such"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("assay: error: --device no such is not there: torch ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("findings", "verdict", "words"),
    [
        ([], "fit", "nothing found"),
        ([UNKNOWN], "fit", "1 check unknown"),
        ([UNKNOWN, WARN], "fit with doubts", "because of: boost"),
        ([WARN, BAD], "unfit", "mended: swap"),
    ],
)
def test_the_verdict_follows_the_findings(findings: list[Finding], verdict: str, words: str) -> None:
    found = checkup(*findings)
    assert found.verdict == verdict
    assert words in found.sentence


def test_what_does_not_apply_is_no_finding(tmp_path: Path) -> None:
    host, nothing = Host(tmp_path, {}), take(Host(tmp_path))
    trial = Trial(noises=NOISES, device="X (npu)", memory_total=64 << 30, memory_free=10 << 30)
    with_device = judge(host, tmp_path, (nothing,) * 3, Gpus(None, (), "none"), trial)
    without = judge(host, tmp_path, (nothing,) * 3, Gpus(None, (), "none"), replace(trial, memory_total=None))
    assert {finding.check for finding in with_device} - {finding.check for finding in without} == {"device memory"}
    assert next(finding for finding in with_device if finding.check == "device memory").state == "warn"


TEXT = st.text(max_size=300)
FINDINGS = st.lists(st.builds(Finding, TEXT, st.sampled_from(STATES), TEXT, TEXT), max_size=40)


@given(FINDINGS)
def test_every_checkup_fits_on_one_screen(findings: list[Finding]) -> None:
    rows = render(checkup(*findings)).plain.splitlines()
    assert len(rows) <= LINES
    assert max(map(len, rows)) <= WIDTH


GOOD = [
    Finding("drift", "good", "none: B was now faster, now slower than A"),
    Finding("memory", "good", "12.3 GB of 16.5 GB left"),
    Finding("frequency governor", "good", "performance"),
    *(Finding(f"check {number}", "good", "nothing worth a line") for number in range(14)),
    Finding("shared memory", "good", "8.59 GB of 8.59 GB free in /dev/shm"),
    Finding("open files", "good", "1,048,576 allowed"),
    Finding("torch", "good", "2.6.0, Python 3.11.7"),
]


def test_the_screen_shows_values_of_what_matters_and_names_every_other_check() -> None:
    shown = " ".join(render(checkup(WARN, UNKNOWN, *GOOD)).plain.split())
    for value in ("frequency governor: performance", "memory: 12.3 GB of 16.5 GB left", "free in /dev/shm",
                  "open files: 1,048,576 allowed", "torch: 2.6.0, Python 3.11.7"):  # fmt: skip
        assert value in shown
    assert all(finding.check in shown for finding in GOOD)
    assert "worth a line" not in shown
    assert " …" not in shown


def test_where_troubles_fill_the_screen_what_is_good_is_named_only() -> None:
    many = [Finding(f"trouble {i}", "warn", "found", "do") for i in range(7)]
    shown = render(checkup(BAD, *many, *GOOD)).plain
    assert "frequency governor" in shown
    assert "performance" not in shown
    assert shown.count("→") == 8
    assert len(shown.splitlines()) <= LINES


def test_the_screen_tells_what_to_do(real: Checkup) -> None:
    good = [finding for finding in real.findings if finding.state == "good"]
    shown = render(replace(real, findings=(BAD, WARN, UNKNOWN, *good))).plain
    assert shown.startswith("Unfit: do not measure here before this is mended: swap.")
    assert "bad  swap: 12 pages moved\n     → stop it\n" in shown
    assert "warn boost: on\n     → turn it off\n" in shown
    assert "unknown: heat\n" in shown
    assert shown.count("\ngood ") == 1
    assert f"B/A {real.noises[0].ratios[0]:.3f}" in shown
    assert f"{len(good) + 3} checks in" in shown


def test_too_many_troubles_are_named_at_least() -> None:
    state: State = "warn"
    many = [Finding(f"check {i}", state, "found " * 30, "do " * 40) for i in range(20)]
    shown = render(checkup(BAD, *many)).plain
    assert "bad  swap" in shown
    assert "more findings: " in shown
    assert len(shown.splitlines()) <= LINES


def test_names_of_processes_cannot_command_the_terminal() -> None:
    evil = Finding("other load", "warn", "\x1b[2Jrm [bold]x[/bold]\n\n\ny (pid 1)", "stop it")
    shown = render(checkup(evil)).plain
    assert "\x1b" not in shown
    assert "rm [bold]x[/bold] y (pid 1)" in shown


def test_the_report_shows_verdict_findings_and_noise() -> None:
    part = fitness_part(stored(checkup(BAD, WARN, UNKNOWN)))
    assert part is not None
    assert part.lead.startswith("Unfit: do not measure here before this is mended: swap.")
    assert "2026-02-03T04:05:06+0100 in 6.50 s on Some CPU (cpu)" in part.lead
    findings, noise = part.tables
    assert [cell.text for cell in findings.rows[0]] == ["swap", "bad", "12 pages moved", "stop it"]
    assert [cell.text for cell in noise.rows[0]] == [PRODUCTS, "1.00 %", "  ".join(["1.0100"] * 5), "B always slower"]
    assert "93.75" in part.code


@pytest.mark.parametrize(
    "nothing", [None, {}, [], "unfit", {"findings": [], "noise": None}, {"findings": [1, None, {}]}]
)
def test_a_run_without_a_checkup_has_no_such_part(nothing: object) -> None:
    assert fitness_part(nothing) is None


def test_what_is_foreign_is_left_out_of_the_report() -> None:
    document = {
        "sentence": 7,
        "seconds": "soon",
        "findings": ["x", {"check": "swap", "state": "awful"}, {"check": 1, "state": "bad"}],
        "noise": [{"work": "x", "noise": 10**400, "ratios": [1, True, "2", None, float("nan")]}, {"ratios": 3}],
    }
    part = fitness_part(document)
    assert part is not None
    assert part.lead == "No verdict was recorded."
    assert [[cell.text for cell in row] for table in part.tables for row in table.rows] == [
        ["swap", "awful", "–", "–"],
        ["x", "NA", "1.0000", "none"],
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["findings", "noise", "check", "state", "work", "ratios", "sentence", "seconds", "drift"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_document_breaks_the_report(document: Mapping[str, Any]) -> None:
    fitness_part(document)
