import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from assay.errors import BadInput, RunFailed
from assay.rundir import RunDir, Status, write_document

PASSED = Status("passed", "run", 0, 1.0)
FAILED = Status("failed", "run", 1, 1.0, "a reason", "some advice")


def test_documents_are_whole_or_absent(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_document(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(RunFailed, match=r"(not a directory|file exists)"):
        write_document(tmp_path / "a.json" / "b.json", {})


def test_attempts_are_never_overwritten_and_the_passed_one_speaks(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["a"]})
    case = run.case("a")
    assert case.latest() is None
    first, second = case.new_attempt(), case.new_attempt()
    assert [path.name for path in case.attempts()] == ["attempt-1", "attempt-2"]
    assert case.latest() == (second, None), "an attempt without a status has not ended"
    run.write_status(first, PASSED)
    run.write_status(second, FAILED)
    assert case.latest() == (first, PASSED)
    assert case.new_attempt().name == "attempt-3"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory; is this a run folder of assay?"),
        ("{", "is no valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": "assay-run/7"}', "key 'schema' is 'assay-run/7', this assay reads 'assay-run/1'"),
    ],
)
def test_what_is_no_run_folder_of_ours_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=said.replace("?", r"\?").replace("[", r"\[")):
        RunDir.open(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        RunDir.open(tmp_path / "absent")


def test_a_folder_has_one_runner_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": []})
    code = "import sys; from pathlib import Path; from assay.rundir import RunDir; RunDir(Path(sys.argv[1])).lock()"
    other = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert f"another runner owns this folder (pid {os.getpid()} on" in other.stderr
    run.unlock()
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    run.lock()  # the process above has ended without unlocking
    run.unlock()


def test_a_runner_on_another_host_is_believed_to_live(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": []})
    run.unlock()
    (run.path / "runner.lock").write_text('{"pid": 1, "start_time": 5.0, "host": "elsewhere"}')
    with pytest.raises(BadInput, match="a runner on another host owns this folder"):
        run.lock()


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        RunDir.create(tmp_path, {})
