"""The scripts in slurm/, as Slurm starts them: a copy in a spool folder, variables of a job, and what they then start.

What stands for Python here is an executable that tells its own arguments and environment; everything else is real. The
same scripts under a real Slurm: test_slurm_scripts_cluster.py.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay.errors import SENTENCE_MARK
from assay.suite import load_suite
from tests.conftest import ROOT, environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = {
    "train_8card": ("train-8", "train-tiny"),
    "train_32card": ("train-32", "train-tiny"),
    "train_128card": ("train-128", "train-tiny"),
    "finetune_8card": ("finetune-8", "finetune-tiny"),
    "finetune_32card": ("finetune-32", "finetune-tiny"),
    "comms_8card": ("communication-8", "communication-tiny"),
    "comms_32card": ("communication", "communication-tiny"),
}
ALL = [*SCRIPTS, "suite"]
TELLER = f"""#!{sys.executable}
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()}}), flush=True)
if "TELLER_WAITS" in os.environ:
    time.sleep(60)
sys.exit(int(os.environ.get("TELLER_EXITS", "0")))
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout with our scripts and suites, and with the teller as its Python."""

    home: Path
    spool: Path

    def job(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> tuple[list[str], dict[str, str]]:
        """argv and environment of a job's batch script, submitted in `cwd` [the checkout]."""
        self.spool.mkdir(exist_ok=True)
        spooled = shutil.copy(ROOT / f"slurm/{script}.sh", self.spool / "slurm_script")
        about = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(cwd or self.home), "SLURM_GPUS_PER_NODE": "8"}
        known = {key: value for key, value in environment().items() if not key.startswith(("ASSAY_", "SLURM_"))}
        return [str(spooled), *args], {**known, **about, **env}

    def run(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run the batch script to its end."""
        argv, variables = self.job(script, *args, cwd=cwd, **env)
        return subprocess.run(
            argv, cwd=cwd or self.home, env=variables, capture_output=True, text=True, check=False, timeout=60
        )

    def started(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> dict[str, Any]:
        """What the script has started: argv, env."""
        done = self.run(script, *args, cwd=cwd, **env)
        assert (done.returncode, done.stderr) == (0, "")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def refusal(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> str:
        """The one sentence with which the script ends, with the exit code of bad input."""
        done = self.run(script, *args, cwd=cwd, **env)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(SENTENCE_MARK)
        return line.removeprefix(SENTENCE_MARK)

    def site(self, text: str) -> None:
        """Write slurm/site.env."""
        (self.home / "slurm/site.env").write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    home = tmp_path / "home of assay"  # a blank in it must not matter
    for name in ("slurm", "suites"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("site.env", "__pycache__"))
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(TELLER)
    python.chmod(0o755)
    return Checkout(home, tmp_path / "spool")


def expected(checkout: Checkout, name: str, per_node: int = 8) -> list[str]:
    suite, folder = checkout.home / f"suites/{name}.yaml", checkout.home / f"runs/{name}-77"
    return [
        "-m", "assay", "run", str(suite), "--launcher", "slurm", "-n", str(per_node), "--folder", str(folder)
    ]  # fmt: skip


@pytest.mark.parametrize("script", [*ALL, "environment"])
def test_scripts_are_bash_that_never_asks_for_its_own_path(script: str) -> None:
    file = ROOT / f"slurm/{script}.sh"
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert not re.search(r"\$\{?0\b|BASH_SOURCE", file.read_text()), "Slurm runs a copy, in its spool"
    assert os.access(file, os.X_OK) == (script != "environment")


@pytest.mark.parametrize("script", ALL)
def test_the_head_says_how_the_script_is_used(script: str) -> None:
    text = (ROOT / f"slurm/{script}.sh").read_text()
    head = text.split("#SBATCH")[0]
    assert head.startswith("#!/bin/bash\n# ")
    for said in (f"sbatch slurm/{script}.sh", "ASSAY_HOME=", "ASSAY_PRESET=tiny", "slurm/site.env", "docs/slurm.md"):
        assert said in head or (script, said) == ("suite", "sbatch slurm/suite.sh"), said
    options = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert {"nodes", "gpus-per-node", "ntasks-per-node", "exclusive", "time", "output", "open-mode", "requeue"} < set(
        options
    )
    assert not {"partition", "account", "qos"} & set(options), "they are the site's"
    # Everything that is submitted by hand has to be one after the other: Slurm reads no option behind a command.
    assert "#SBATCH" not in text.split("set -euo pipefail")[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_its_suite_and_its_small_twin(checkout: Checkout, script: str) -> None:
    full, tiny = SCRIPTS[script]
    assert checkout.started(script)["argv"] == expected(checkout, full)
    assert checkout.started(script, "-o", "a b=1")["argv"] == [*expected(checkout, full), "-o", "a b=1"]
    assert checkout.started(script, ASSAY_PRESET="tiny")["argv"] == expected(checkout, tiny)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_allocation_is_as_large_as_the_suite(script: str) -> None:
    text = (ROOT / f"slurm/{script}.sh").read_text()
    size = {name: int(re.findall(rf"^#SBATCH --{name}=(\d+)$", text, re.MULTILINE)[0]) for name in ("nodes", "gpus-per-node")}  # fmt: skip
    suite = load_suite(ROOT / f"suites/{SCRIPTS[script][0]}.yaml")
    assert size["nodes"] * size["gpus-per-node"] == max(case.world for case in suite.cases)


def test_any_suite_can_be_given(checkout: Checkout, tmp_path: Path) -> None:
    told = checkout.started("suite", "mine.yaml", "-o", "steps=3", cwd=tmp_path, ASSAY_HOME=str(checkout.home))
    assert told["argv"] == [
        "-m", "assay", "run", "mine.yaml", "--launcher", "slurm", "-n", "8", "--folder",
        f"{checkout.home}/runs/mine-77", "-o", "steps=3",
    ]  # fmt: skip
    assert told["cwd"] == str(tmp_path), "paths on the command line mean what they meant when it was typed"
    assert checkout.started("suite", "train-8", ASSAY_PRESET="tiny")["argv"] == expected(checkout, "train-tiny")
    assert checkout.refusal("suite").startswith("no suite; name one behind the script")
    assert "quick-tiny.yaml; submit without ASSAY_PRESET=tiny" in checkout.refusal(
        "suite", "quick", ASSAY_PRESET="tiny"
    )


@pytest.mark.parametrize("script", ALL)
def test_the_checkout_is_found_from_where_the_job_was_submitted(
    checkout: Checkout, tmp_path: Path, script: str
) -> None:
    args = () if script in SCRIPTS else (str(checkout.home / "suites/train-8.yaml"),)
    whole = expected(checkout, SCRIPTS.get(script, ("train-8", ""))[0])
    assert checkout.started(script, *args, cwd=checkout.home / "slurm")["argv"] == whole
    assert checkout.started(script, *args, cwd=tmp_path, ASSAY_HOME=str(checkout.home))["argv"] == whole
    empty = tmp_path / "empty"
    empty.mkdir()
    said = checkout.refusal(script, *args, cwd=empty)
    assert said == f"no assay checkout at {empty}; submit from the checkout, or set ASSAY_HOME to it"
    # What was said outright counts: a slip in ASSAY_HOME must not measure another checkout.
    assert f"no assay checkout at {empty}" in checkout.refusal(script, *args, ASSAY_HOME=str(empty))


def test_what_is_missing_is_said_in_one_sentence(checkout: Checkout) -> None:
    run = checkout.refusal
    assert run("train_8card", SLURM_JOB_ID="").startswith("this is no Slurm job; submit the script with sbatch")
    assert run("train_8card", ASSAY_PRESET="Tiny").startswith("ASSAY_PRESET=Tiny: expected tiny")
    assert run("train_8card", ASSAY_PYTHON="/no/python").startswith("no Python at /no/python; run make quick in ")
    assert run("train_8card", ASSAY_RUNS="/proc/runs").startswith("no run folders can be made in /proc/runs; name")
    (checkout.home / "suites/train-tiny.yaml").unlink()
    assert run("train_8card", ASSAY_PRESET="tiny").startswith(
        f"there is no small twin at {checkout.home}/suites/train-t"
    )


def test_a_suite_that_is_not_there_is_named_by_assay_itself(checkout: Checkout) -> None:
    # The real Python, and outside of any allocation: the suite is looked for before anything else.
    said = checkout.refusal("suite", "comunication", ASSAY_PYTHON=sys.executable)
    assert said == "suite 'comunication': no such file or shipped suite; did you mean 'communication'?"


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_is_the_jobs(checkout: Checkout, code: int) -> None:
    assert checkout.run("comms_8card", TELLER_EXITS=str(code)).returncode == code


def test_signals_reach_what_was_started(checkout: Checkout) -> None:
    argv, variables = checkout.job("train_8card", TELLER_WAITS="1")
    with subprocess.Popen(argv, cwd=checkout.home, env=variables, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout
        told = json.loads(script.stdout.readline())
        assert told["pid"] == script.pid, "Slurm signals the batch script; it must have become the runner"
        script.send_signal(signal.SIGTERM)
        assert script.wait(30) == 130


def test_a_sites_settings_reach_the_ranks(checkout: Checkout) -> None:
    python = checkout.home / "bin/site python"
    python.parent.mkdir()
    python.write_text(TELLER)
    python.chmod(0o755)
    runs = checkout.home / "scratch"
    checkout.site(
        f"GLOO_SOCKET_IFNAME=ib0\nMARK=\"of ${{ASSAY_HOME##*/}}\"\nASSAY_PYTHON='{python}'\nASSAY_RUNS='{runs}'\n"
        "USERS=${USERS:-mine}\necho $UNKNOWN_TO_BASH >/dev/null\nfalse\n"
    )
    told = checkout.started("train_8card", USERS="theirs")
    assert told["argv"][-1] == f"{runs}/train-8-77"
    names = ("GLOO_SOCKET_IFNAME", "MARK", "USERS", "SLURM_EXPORT_ENV", "PYTHONUNBUFFERED")
    assert [told["env"].get(name) for name in names] == ["ib0", "of home of assay", "theirs", "ALL", "1"]


@pytest.mark.parametrize(
    ("env", "ranks"),
    [
        ({"SLURM_GPUS_PER_NODE": "4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:4", "SLURM_GPUS_ON_NODE": "8"}, 4),
        ({"SLURM_GPUS_PER_NODE": "0"}, 8),  # a cluster without devices is told so, and its CPUs take as many ranks
        ({"SLURM_GPUS_PER_NODE": ""}, 8),
        ({"ASSAY_RANKS_PER_NODE": "2"}, 2),
    ],
)
def test_there_is_one_rank_a_device_unless_a_number_is_given(
    checkout: Checkout, env: dict[str, str], ranks: int
) -> None:
    assert checkout.started("train_8card", cwd=checkout.home, **env)["argv"] == expected(checkout, "train-8", ranks)


def test_a_requeued_job_goes_on_with_its_own_folder(checkout: Checkout) -> None:
    first, second = checkout.started("train_8card"), checkout.started("train_8card", SLURM_RESTART_COUNT="1")
    assert first["argv"] == second["argv"]
    assert checkout.started("train_8card", SLURM_JOB_ID="78")["argv"][-1].endswith("runs/train-8-78")


def test_pyxis_gets_image_and_mounts_as_options_of_srun(checkout: Checkout) -> None:
    checkout.site(
        "ASSAY_CONTAINER_ENGINE=pyxis\nASSAY_CONTAINER=registry#team/assay:1\nASSAY_CONTAINER_MOUNTS=/data:/data:ro\n"
        "ASSAY_CONTAINER_OPTIONS=--container-mount-home\nASSAY_SRUN_OPTIONS=--mpi=none\n"
    )
    env = checkout.started("train_8card")["env"]
    home = checkout.home
    assert shlex.split(env["ASSAY_SRUN_OPTIONS"]) == [
        "--mpi=none",
        "--container-image=registry#team/assay:1",
        f"--container-mounts={home}:{home},{home}/runs:{home}/runs,/data:/data:ro",
        "--container-mount-home",
    ]
    assert "ASSAY_NODE_PREFIX" not in env
    assert (env["ASSAY_NODE_PYTHON"], env["PYTHONPATH"]) == ("python3", str(home))


def test_apptainer_stands_before_the_command_of_every_node(checkout: Checkout) -> None:
    image = checkout.home / "assay.sif"
    settings = f"ASSAY_CONTAINER_ENGINE=apptainer\nASSAY_CONTAINER='{image}'\nASSAY_NODE_PYTHON=/opt/venv/bin/python\n"
    checkout.site(settings)
    assert checkout.refusal("train_8card").startswith(f"no image at {image}; correct ASSAY_CONTAINER")
    image.touch()
    env, home = checkout.started("train_8card", PYTHONPATH="/more")["env"], checkout.home
    bound = f"{home}:{home},{home}/runs:{home}/runs"
    assert shlex.split(env["ASSAY_NODE_PREFIX"]) == ["apptainer", "exec", "--nv", "--bind", bound, str(image)]
    assert "ASSAY_SRUN_OPTIONS" not in env
    assert (env["ASSAY_NODE_PYTHON"], env["PYTHONPATH"]) == ("/opt/venv/bin/python", f"{home}:/more")
    checkout.site(settings + "ASSAY_CONTAINER_OPTIONS='--rocm --cleanenv'\n")
    words = shlex.split(checkout.started("train_8card")["env"]["ASSAY_NODE_PREFIX"])
    assert words[:4] == ["apptainer", "exec", "--rocm", "--cleanenv"]


def test_a_container_needs_an_engine_that_is_known(checkout: Checkout) -> None:
    said = checkout.refusal("train_8card", ASSAY_CONTAINER="image", ASSAY_CONTAINER_ENGINE="docker")
    assert said.startswith("ASSAY_CONTAINER_ENGINE=docker: expected pyxis or apptainer")


def test_every_line_of_the_example_can_be_taken_as_it_is(checkout: Checkout) -> None:
    example = (ROOT / "slurm/site.env.example").read_text()
    settings = re.findall(r"^# ([A-Z_]+=\S+)$", example, re.MULTILINE)
    assert len(settings) > 10
    # One engine at a time, and images that are not here: those lines come from the tests above.
    used = [line for line in settings if not line.startswith(("ASSAY_CONTAINER", "ASSAY_PYTHON", "ASSAY_RUNS"))]
    checkout.site("\n".join(used))
    told = checkout.started("train_8card")
    for line in used:
        name, _, value = line.partition("=")
        assert value in (told["env"][name], f"${{{name}:-{told['env'][name]}}}")
    assert told["argv"][told["argv"].index("-n") + 1] == "4"
    assert "slurm/site.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_setting_is_documented_and_every_documented_one_is_there() -> None:
    shared = (ROOT / "slurm/environment.sh").read_text()
    page = (ROOT / "docs/slurm.md").read_text()
    there, told = (set(re.findall(r"\bASSAY_[A-Z_]+[A-Z]\b", text)) for text in (shared, page))
    assert told == there - {"ASSAY_NODE"}
    for script in re.findall(r"slurm/\w+\.\w+", page):
        assert (ROOT / script).exists() or script == "slurm/site.env"


def test_twins_are_marked_as_such_and_what_differs_between_8_and_32_cards_is_their_number() -> None:
    written = {
        name: yaml.safe_load((ROOT / f"suites/{name}.yaml").read_text()) for pair in SCRIPTS.values() for name in pair
    }
    for full, tiny in SCRIPTS.values():
        assert written[tiny]["smoke_of"].split("-")[0] == full.split("-")[0]
        assert all(case["world"] == "all" for case in written[tiny]["cases"])
    for name in ("pretrain", "bert"):
        small, large = (
            next(case for case in written[suite]["cases"] if case["name"] == name) for suite in ("train-8", "train-32")
        )
        assert large["options"].pop("global_batch") == 4 * small["options"].pop("global_batch")
        assert (large.pop("world"), small.pop("world")) == (32, 8)
        assert small == large
    small, large = written["finetune-8"]["cases"], written["finetune-32"]["cases"]
    assert {case.pop("world") for case in small} == {8}
    assert {case.pop("world") for case in large} == {32}
    assert small == large, "a public recipe has one batch, whatever the number of ranks"


def test_the_containerfile_takes_what_is_there_and_installs_under_the_constraints() -> None:
    text = (ROOT / "Containerfile").read_text()
    taken = [words.split()[:-1] for words in re.findall(r"^COPY (.*)$", text, re.MULTILINE)]
    names = {name for group in taken for name in group}
    assert all((ROOT / name).exists() for name in names)
    folders = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values())
    assert folders | {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} == names
    (target,) = re.findall(r"make VENV=/opt/venv SYSTEM_TORCH=\S+ (\S+)", text)
    for own, wanted in (("0", "--constraint constraints.txt --editable ."), ("1", "--no-deps --no-build-isolation")):
        goal = target.replace("${SYSTEM_TORCH}", own)
        argv = ["make", "--dry-run", "VENV=/opt/venv", f"SYSTEM_TORCH={own}", goal]
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
        )
        assert wanted in done.stdout
