"""The command as a person types it."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, TINY, assay, environment, free_port


def without_torch(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process where importing torch is an error."""
    code = (
        "import sys\nclass No:\n def find_spec(self, name, *rest):\n"
        "  if name.split('.')[0] in ('torch', 'transformers'): raise RuntimeError('imported ' + name)\n"
        "sys.meta_path.insert(0, No())\nsys.argv = ['assay', *sys.argv[1:]]\nfrom assay.cli import main\nmain()\n"
    )
    argv = [sys.executable, "-c", code, *args]
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "args", [("--help",), ("list",), ("plan", "suites/quick.yaml"), ("run", "--help"), ("run", "x")]
)
def test_torch_is_not_imported_before_ranks_are(args: tuple[str, ...]) -> None:
    done = without_torch(*args)
    assert "imported torch" not in done.stderr
    assert done.returncode == (2 if args == ("run", "x") else 0), done.stderr


def test_reading_scoring_and_reporting_need_no_torch(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for command in ("score", "report"):
        done = without_torch(command, str(run))
        assert done.returncode == 0, done.stderr


def without_out(command: str) -> str:
    return re.sub(r" --out=\S+", "", command)


def test_a_folder_is_finished_only_as_it_began(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "tiny.yaml").write_text(TINY)
    for flags, said in (
        (("--launcher", "mpi"), f"--folder {run}: its run began with launcher local, not mpi; give another folder"),
        (("-n", "2"), f"--folder {run}: its run began with per_node None, not 2; give another folder"),
        (("--preflight",), f"--folder {run}: its run began with preflight False, not True; give another folder"),
    ):
        done = assay("run", "tiny.yaml", "--folder", run, *flags, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, f"assay: error: {said}\n")
    done = assay("run", "tiny.yaml", "--folder", tmp_path / "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"assay: error: .*tiny.yaml: exists already; [^\n]*\n", done.stderr)
    assert "Traceback" not in assay("preflight", "-n", "0", cwd=tmp_path).stderr


def test_a_script_is_a_suite_of_one_case_on_all_ranks(tmp_path: Path) -> None:
    planned = assay("plan", "comms/bench.py", "-n", "4", "-o", "ops=broadcast", cwd=tmp_path).stdout
    assert "bench: comms/bench, world 4" in planned
    assert planned.rstrip().endswith(
        "comms/bench.py --out=" + str(tmp_path / "runs/RUN/cases/bench/attempt-1") + " --ops=broadcast"
    )
    lacking = assay("plan", "comms/bench", cwd=tmp_path)
    assert lacking.returncode == 2
    assert lacking.stderr.endswith("world: all needs to know how many ranks there are on each host; give -n\n")


def test_the_plan_is_what_runs(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    planned = assay("plan", "tiny.yaml", cwd=tmp_path).stdout
    for case in (tiny_run / "cases").iterdir():
        command = json.loads((case / "attempt-1/command.json").read_text())
        assert f"{case.name}: " in planned
        assert without_out(" ".join(command["argv"])) in without_out(planned)
        for name, value in command["env"].items():
            assert f"{name}={value}" in planned
    assert not (tmp_path / "runs").exists()


def test_a_run_leaves_all_that_a_reader_needs(tiny_run: Path) -> None:
    document = json.loads((tiny_run / "run.json").read_text())
    assert document["software"]["torch"]
    assert document["host"]["cores_usable"] >= 1
    assert document["environment"]["OMP_NUM_THREADS"] == "1"
    assert document["code"]["path"]
    for case in (tiny_run / "cases").iterdir():
        names = {path.name for path in (case / "attempt-1").iterdir()}
        assert names >= {
            "command.json",
            "stdout.log",
            "stderr.log",
            "status.json",
            "rank-00000.jsonl",
            "rank-00001.jsonl",
        }
        assert (case / "case.json").exists()
    assert (tiny_run / "report.html").exists()
    assert "TGS" in (tiny_run / "report.md").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run",), "give a suite, or --resume with a run folder; not both"),
        (("run", "quik"), "suite 'quik': no such file or shipped suite; did you mean 'quick'?"),
        (("run", "quick", "-o", "steps"), "-o steps: expected KEY=VALUE, for example -o steps=20"),
        (("run", "quick", "-o", "stesp=2"), "-o stesp: no case has the option 'stesp'; did you mean 'steps'?"),
        (("run", "quick", "--launcher", "slrm"), "--launcher slrm: unknown; did you mean 'slurm'?"),
        (("run", "quick", "--launcher", "slurm"), "--launcher slurm: say how many ranks a host takes, one for each of its accelerators: -n 8"),
        (("run", "quick", "--launcher", "slurm", "-n", "2", "--spawn", "torchrn"), "--spawn torchrn: unknown; did you mean 'torchrun'?"),
        (("run", "quick", "-N", "2"), "-N 2: the local launcher has 1 here; give --launcher slurm or mpi"),
        (("run", "quick", "--case", "a"), "--case is for --resume; for a new run, write a suite of the cases that you want"),
        (("run", "--resume", "nowhere", "-n", "2"), "a run that has begun is finished as it began: --resume takes no such option; start a new one"),
        (("cancel", "nowhere"), "nowhere: is no folder; give the run folder that `assay run` printed"),
        (("run", "--resume", "nowhere"), "nowhere: is no folder; give the run folder that `assay run` printed"),
        (("plan", "s.yaml"), "profile 'loacl': no such file or shipped profile; did you mean 'local'?"),
        (("score", "."), "run.json: no such file or directory; is this a run folder of assay?"),
        (("report", "nowhere"), "nowhere: is no folder; give the run folder that `assay run` printed"),
        (("baseline", "record", "nowhere"), "nowhere: is no folder; give the run folder that `assay run` printed"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(
    tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    if "s.yaml" in args:
        (tmp_path / "s.yaml").write_text(TINY.replace("name: tiny", "name: tiny\nprofile: loacl"))
    before = sorted(tmp_path.iterdir())
    done = assay(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"assay: error: {said}"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_named_folder_is_finished_when_the_same_command_runs_again(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    again = assay("run", "tiny.yaml", "--folder", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("passed before") == 3
    assert not (tmp_path / "runs").exists()
    other = assay("run", "tiny.yaml", "-o", "train.steps=21", "--folder", "run", cwd=tmp_path)
    assert (other.returncode, other.stderr) == (
        2,
        "assay: error: --folder run: holds a run of another suite, or with other options; give another folder\n",
    )
    assert [len(list(case.glob("attempt-*"))) for case in (run / "cases").iterdir()] == [1, 1, 1]


def test_a_run_is_resumed_for_one_case(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for name in ("report.html", "report.md"):
        (run / name).unlink()
    done = assay("run", "--resume", "run", "--case", "comms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed before") == 1
    assert not (run / "report.html").exists(), "other cases may be still to come"
    wrong = assay("run", "--resume", "run", "--case", "coms", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "assay: error: --case coms: run has no such case; did you mean 'comms'?\n",
    )


def test_a_run_that_has_no_jobs_has_none_to_cancel(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    done = assay("cancel", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no job of this run is queued or running\n"), done.stderr


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "s.yaml").write_text(TINY.replace("limits: false", f"limits: false\nport: {port}"))
        done = assay("run", "s.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"assay: error: port {port}: address already in use; give a free one, or none\n"


def test_a_given_port_is_used(tmp_path: Path) -> None:
    head = TINY.partition("  - name: comms")[0]
    (tmp_path / "s.yaml").write_text(head.replace("limits: false", f"limits: false\nport: {free_port()}"))
    assert assay("run", "s.yaml", cwd=tmp_path).returncode == 0


def test_a_run_scored_against_itself_is_1(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    recorded = assay("baseline", "record", run, "--out", tmp_path / "b.yaml", cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    figures = yaml.safe_load((tmp_path / "b.yaml").read_text())["figures"]
    assert {figure["metric"] for figure in figures} == {"throughput_deepspeed", "tgs"}
    scored = assay("score", run, "--baseline", tmp_path / "b.yaml", cwd=tmp_path)
    assert "Communication: 1.0000" in scored.stdout
    assert "Training performance: 1.0000" in scored.stdout
    report = assay("report", run, "--baseline", tmp_path / "b.yaml", cwd=tmp_path)
    assert "Communication 1.0" in report.stdout, report.stdout


def test_a_baseline_that_is_none_names_file_and_key(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("schema: assay-baseline/1\nname: x\ntitel: y\nsource: z\nfigures: []\n")
    done = assay("score", tiny_run, "--baseline", tmp_path / "b.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/b.yaml: titel: unknown key 'titel'; did you mean 'title'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_is_told() -> None:
    done = assay("env", cwd=ROOT)
    document = json.loads(done.stdout)
    assert document["devices"]["devices"]
    assert "gloo" in document["devices"]["backends"]


def test_the_wheel_ships_scripts_suites_and_data_under_one_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info", "build", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(argv, check=True, capture_output=True, env=environment())
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"assay"}
    # The installed copy, found first on the path, plans the shipped suite with its own scripts.
    code = "import assay; print(assay.__file__); import sys; sys.argv = ['assay', 'plan', 'quick']; from assay.cli import main; main()"
    env = environment(PYTHONPATH=str(site))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert f"-- {site}/assay/comms/bench.py" in done.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "assay", "list"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "a100-80g" in listed.stdout


@pytest.mark.parametrize(
    "line",
    [
        '{"kind":"block","metric":"gemm_time","unit":"s","samples":[1.0],"t":[0,0],"tags":{}}',
        '{"kind":"block","metric":"gemm_time","unit":"s","samples":[0.0],"t":[0,0],"tags":{"loaded":"alone","ranks":1,"work":1,"begun":0}}',
        '{"kind":"block","metric":"batch_time","unit":"s","samples":[1.0],"t":[0,0],"tags":{"op":"all_sum","bytes":1,"world":2,"calls":1}}',
        '{"kind":"block","metric":"batch_time","unit":"s","samples":[1.0],"t":[0,0],"tags":{"op":"pt2pt","bytes":null,"world":"x","calls":1}}',
        '{"kind":"block","metric":"step_time","unit":"s","samples":[[1],[2]],"t":[0,0],"tags":{"phase":"measured"}}',
        '{"kind":"block","metric":"loss","unit":"1","samples":[' + "9" * 400 + '],"t":[0,0],"tags":{}}',
        "[" * 100_000,
    ],
    ids=["no tags", "zero seconds", "unknown op", "odd tags", "nested", "huge", "deep"],
)  # fmt: skip
def test_records_that_make_no_sense_cost_nothing_else(tiny_run: Path, tmp_path: Path, line: str) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for case in ("limits-2", "comms", "train"):
        with (run / f"cases/{case}/attempt-1/rank-00000.jsonl").open("a") as file:
            file.write(line + "\n")
    done = assay("report", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "busbw" in done.stdout


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"schema": "assay-run/1", "suite": {}, "cases": null}', "key 'cases' should be a list of names"),
        ('{"schema": "assay-run/1", "suite": null, "cases": []}', "key 'suite' should be a mapping"),
        ('{"schema": "assay-run/1", "suite": {}, "cases": ["../../etc"]}', "key 'cases' should be a list of names"),
    ],
)
def test_a_run_document_that_makes_no_sense_is_one_sentence(tmp_path: Path, document: str, said: str) -> None:
    (tmp_path / "run.json").write_text(document)
    for args in (("report", "."), ("run", "--resume", ".")):
        done = assay(*args, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_lost_rank_files_are_doubted_and_never_make_a_figure_better(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "cases/train/attempt-1/rank-00001.jsonl").unlink()
    for rank in (0, 1):
        (run / f"cases/comms/attempt-1/rank-0000{rank}.jsonl").unlink()
    (run / "cases/comms/case.json").unlink()
    assert assay("report", run, cwd=tmp_path).returncode == 0
    report = (run / "report.md").read_text()
    assert "1 of 2 ranks have records" in report
    assert "0 of 2 ranks have records" in report
    assert "only 1 of 2 ranks recorded their steps" in report


def test_a_report_of_a_folder_that_cannot_be_written_goes_elsewhere(tiny_run: Path, tmp_path: Path) -> None:
    done = assay("report", tiny_run, "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
    refused = assay("report", tiny_run, "--out", "/proc", cwd=tmp_path)
    assert refused.returncode == 1
    assert "give another folder" in refused.stderr
    assert "Traceback" not in refused.stderr
