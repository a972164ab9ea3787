"""What launchers start: their commands and jobs against golden files, and the life of what they start.

`python -m tests.test_launchers` writes the golden files anew; read the difference before you keep it.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from assay import jobs
from assay.errors import BadInput
from assay.launchers import sbatch
from assay.launchers.choice import launch_keys, launcher_on_paper, runs_in_jobs
from assay.launchers.local import LocalLauncher
from assay.launchers.mpi import MpiLauncher, own_first, read_hostfile
from assay.launchers.ports import HIGHEST, LOWEST, check_port, free_port
from assay.launchers.protocol import Command, Job, Launcher
from assay.launchers.slurm import Allocation, SlurmLauncher, address_of, allocation
from assay.layout import Layout
from assay.suite import Suite, parse_suite
from tests.conftest import ROOT, assay
from tests.slurm_answers import answer

GOLDEN = Path(__file__).parent / "golden_launch"
ENV = {"OMP_NUM_THREADS": "3", "RANK": "7", "NCCL_DEBUG": "WARN", "HOME": "/home/x", "ASSAY_BEACONS": "/x"}
SITE = {
    **ENV,
    "ASSAY_SRUN_OPTIONS": "--container-image='/images/my image.sqsh'",
    "ASSAY_NODE_PREFIX": "numactl --interleave=all",
}
PROGRAM = ("/code/comms/bench.py", "--out=/runs/a b", "--ops=all_reduce")
GIVEN = Allocation("77", ("n1", "n2", "n3", "n4"), cores=96, gpus=8)
HOSTFILE = "# a rack\nn1 slots=8\n\nn2 slots=8  # its twin\nn3 slots=8\n"
SUITE = """
assay: 1
name: s
limits: false
launcher: slurm
nodes: 4
per_node: 8
time_limit: 90
cases:
  - {name: small, script: comms/bench, world: 2}
  - {name: all, script: comms/bench, world: all, time_limit: 1000}
"""


def started(per_node: int, nodes: int = 1) -> Job:
    return Job("all-reduce", PROGRAM, Layout(nodes * per_node, per_node), Path("/runs/a b"))


def typed(command: Command) -> str:
    """A command as text: a word a line, as a difference is best read."""
    words = [f"{name}={value}" for name, value in command.env.items()]
    return "\n".join([*words, *map(shlex.quote, command.argv)]) + "\n"


def suite(text: str = SUITE) -> Suite:
    return parse_suite(text, "s.yaml")


def batch_files(text: str) -> str:
    return "\n".join(sbatch.render(group.job) for group in jobs.groups(suite(text), Path("/runs/s-1")))


def mpi_on_hosts(folder: Path) -> MpiLauncher:
    (folder / "hosts.txt").write_text(HOSTFILE)
    return MpiLauncher(read_hostfile(folder / "hosts.txt"), folder / "hosts.txt")


def rendered(folder: Path) -> dict[str, str]:
    """What is compared with the golden files. folder: for a hostfile."""
    quick = "time_limit: 90\njobs: suite\nsbatch: [--partition=gpu, '--comment=a \"b\" #c']"
    return {
        "local.txt": typed(LocalLauncher().render(started(4), None, ENV)),
        "local-port.txt": typed(LocalLauncher().render(started(4), 29500, ENV)),
        "slurm-torchrun.txt": typed(SlurmLauncher(GIVEN, "torchrun", "10.0.0.1").render(started(8, 2), 29500, ENV)),
        "slurm-srun.txt": typed(SlurmLauncher(GIVEN, "srun").render(started(8, 4), 29500, SITE)),
        "mpi-hostfile.txt": typed(mpi_on_hosts(folder).render(started(8, 2), 29500, ENV)),
        "mpi-allocation.txt": typed(MpiLauncher(GIVEN.hosts, None).render(started(8, 4), 29500, ENV)),
        "mpi-here.txt": typed(MpiLauncher((), None).render(started(2), 29500, ENV)),
        "sbatch-cases.txt": batch_files(SUITE),
        "sbatch-suite.txt": batch_files(SUITE.replace("time_limit: 90", quick)),
    }


def without_machine(text: str, folder: Path) -> str:
    """Text without the paths of this machine."""
    places = {str(folder.resolve()): "HERE", str(folder): "HERE", sys.executable: "PYTHON", str(ROOT): "CHECKOUT"}
    for path, name in places.items():
        text = text.replace(path, name)
    return text


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if path.name != "plan.txt"))
def test_what_is_started_is_as_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert without_machine(rendered(tmp_path)[name], tmp_path) == (GOLDEN / name).read_text()


def test_a_plan_for_slurm_needs_no_slurm_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    done = assay("plan", "s.yaml", cwd=tmp_path, PATH="/nowhere", OMP_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr
    assert without_machine(done.stdout, tmp_path) == (GOLDEN / "plan.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_rendering_changes_nothing_and_gives_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {*rendered(tmp_path), "plan.txt"} == {path.name for path in GOLDEN.iterdir()}
    mpi = mpi_on_hosts(tmp_path)
    launchers: list[Launcher] = [LocalLauncher(), SlurmLauncher(GIVEN, "torchrun"), SlurmLauncher(GIVEN, "srun"), mpi]
    before = dict(os.environ), sorted(tmp_path.rglob("*"))
    given = dict(SITE)
    for launcher in launchers:
        one, two = (launcher.render(started(2), 29500, given) for _ in range(2))
        assert one == two
        assert one.env["ASSAY_RUN"] == "1"
        assert "RANK" not in one.env, "what an outer launcher said is for nobody below"
    batch_files(SUITE)
    assert given == SITE
    assert (dict(os.environ), sorted(tmp_path.rglob("*"))) == before


def test_cores_are_shared_by_the_ranks_of_a_host() -> None:
    launcher = SlurmLauncher(GIVEN, "torchrun")
    assert launcher.render(started(8, 2), 1, {}).env["OMP_NUM_THREADS"] == "12"
    assert launcher.render(started(200), 1, {}).env["OMP_NUM_THREADS"] == "1"
    by_srun = SlurmLauncher(GIVEN, "srun").render(started(8, 2), 1, {}).argv
    assert {"--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=12"} <= set(by_srun)


def test_a_batch_file_runs_its_command_word_by_word_and_has_its_exit_code(tmp_path: Path) -> None:
    work = tmp_path / "my $work's"
    work.mkdir()
    code = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]])); sys.exit(7)"
    words = ("two words", "$HOME", "it's", "*", "")
    job = sbatch.BatchJob("a", 1, 60.0, (sys.executable, "-c", code, *words), work, tmp_path, ())
    job.file.write_text(sbatch.render(job))
    done = subprocess.run(["bash", job.file], cwd="/", capture_output=True, text=True, check=False)
    assert (json.loads(done.stdout), done.returncode) == ([str(work), *words], 7), done.stderr


def test_the_path_of_the_output_is_told_to_slurm_literally(tmp_path: Path) -> None:
    job = sbatch.BatchJob("a", 1, 60.0, ("true",), tmp_path, Path("/runs/100%j done"), ("--comment=x",))
    assert '#SBATCH --output="/runs/100%%j done/a-%j.out"' in sbatch.render(job).splitlines()
    assert job.output("12") == Path("/runs/100%j done/a-12.out")
    assert sbatch.render(job).index("--output") < sbatch.render(job).index("--comment"), "a site's word is the last"


# --- Which launcher, on which hosts

IN_JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "96(x2),64"}


def test_the_allocation_is_what_slurm_says() -> None:
    assert allocation({}) is None
    assert allocation({"SLURM_JOB_ID": "77"}) is None
    assert allocation(IN_JOB) == Allocation("77", ("n1", "n2", "n3"), 64, None)
    for asked in ("8", "a100:8"):
        assert allocation({**IN_JOB, "SLURM_GPUS_PER_NODE": asked}) == Allocation("77", ("n1", "n2", "n3"), 64, 8)
    for torn in (",", "n[1-"):
        with pytest.raises(BadInput, match=r"node list|SLURM_JOB_NODELIST"):
            allocation({**IN_JOB, "SLURM_JOB_NODELIST": torn})


@pytest.mark.parametrize(
    ("file", "given", "env", "keys"),
    [
        ({}, {}, {}, {}),
        ({}, {"launcher": "slurm", "per_node": 8}, {}, {"launcher": "slurm", "per_node": 8}),
        ({"launcher": "slurm", "per_node": 8, "nodes": 64}, {}, IN_JOB, {"nodes": 3}),
        ({"launcher": "slurm"}, {}, {**IN_JOB, "SLURM_GPUS_PER_NODE": "8"}, {"nodes": 3, "per_node": 8}),
        ({"launcher": "slurm", "per_node": 4}, {"nodes": 2}, {**IN_JOB, "SLURM_GPUS_PER_NODE": "8"}, {"nodes": 2, "per_node": 4}),
        ({"launcher": "slurm", "per_node": 8}, {"launcher": "local"}, IN_JOB, {"launcher": "local"}),
        ({"launcher": "mpi"}, {}, {}, {"nodes": 1}),
        ({"launcher": "mpi"}, {}, IN_JOB, {"nodes": 3}),
    ],
)  # fmt: skip
def test_how_a_suite_is_launched(
    file: Mapping[str, object], given: Mapping[str, object], env: Mapping[str, str], keys: Mapping[str, object]
) -> None:
    assert launch_keys(file, given, env) == keys


@pytest.mark.parametrize(
    ("given", "env", "said"),
    [
        ({"launcher": "slurm"}, {}, "--launcher slurm: say how many ranks a host takes, one for each of its accelerators: -n 8"),
        ({"launcher": "slurm", "nodes": 4, "per_node": 8}, IN_JOB, "-N 4: the slurm launcher has 3 here; ask for more with sbatch -N"),
        ({"launcher": "mpi", "nodes": 2}, {}, "-N 2: the mpi launcher has 1 here; name them with --hostfile"),
        ({"nodes": 2}, {}, "-N 2: the local launcher has 1 here; give --launcher slurm or mpi"),
    ],
)  # fmt: skip
def test_hosts_that_are_not_there_are_one_sentence(
    given: Mapping[str, object], env: Mapping[str, str], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        launch_keys({}, given, env)
    assert str(caught.value) == said


def test_a_hostfile_tells_the_hosts_in_order(tmp_path: Path) -> None:
    launcher = mpi_on_hosts(tmp_path)
    assert launcher.hosts == ("n1", "n2", "n3")
    keys = {"launcher": "mpi", "hostfile": str(tmp_path / "hosts.txt")}
    assert launch_keys({}, keys, IN_JOB) == {**keys, "nodes": 3}
    with pytest.raises(BadInput, match=r"^-N 4: the mpi launcher has 3 here; name them with --hostfile$"):
        launch_keys({}, {**keys, "nodes": 4}, {})
    for text, said in (("# none\n\n", "names no host"), ("n1\nn2\nn1\n", "n1 is there twice"), (None, "no such file")):
        if text is None:
            (tmp_path / "hosts.txt").unlink()
        else:
            (tmp_path / "hosts.txt").write_text(text)
        with pytest.raises(BadInput, match=said):
            read_hostfile(tmp_path / "hosts.txt")
    (tmp_path / "hosts.txt").write_bytes(b"\xff\n")
    with pytest.raises(BadInput, match="is not UTF-8 text; give a file with one host a line"):
        read_hostfile(tmp_path / "hosts.txt")


def test_outside_of_a_job_a_suite_for_slurm_goes_into_jobs() -> None:
    file = suite().file
    assert runs_in_jobs(file, {})
    assert not runs_in_jobs(file, IN_JOB)
    assert launcher_on_paper(file, {}).hosts == ("FIRST-HOST",)
    assert launcher_on_paper(file, IN_JOB).hosts == ("n1", "n2", "n3")


def test_a_sites_words_that_are_torn_are_one_sentence() -> None:
    with pytest.raises(
        BadInput, match=r"environment: ASSAY_SRUN_OPTIONS=.*no closing quotation; quote it as in a shell"
    ):
        SlurmLauncher(GIVEN, "srun").render(started(8), 1, {"ASSAY_SRUN_OPTIONS": "--x='y"})


def test_a_host_without_a_name_is_reached_by_the_address_that_slurm_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert address_of("localhost") == "localhost"
    unknown = "no-such-host.invalid"
    answer(tmp_path, "scontrol", f"NodeName={unknown} Arch=x NodeAddr=10.1.2.3 NodeHostName={unknown}\n")
    assert address_of(unknown) == "10.1.2.3"
    for told in (f"NodeAddr={unknown}\n", ""):
        answer(tmp_path, "scontrol", told)
        with pytest.raises(BadInput, match="its name has no address here; mend DNS or /etc/hosts"):
            address_of(unknown)
    with pytest.raises(BadInput, match="its name has no address here"):
        address_of("a..b")


def test_a_chosen_port_is_free_and_not_where_others_take_theirs() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10, "two jobs that start at once seldom choose the same"
    assert all(LOWEST <= port <= HIGHEST for port in ports)
    for port in ports:
        check_port(port)
    check_port(None)


def test_open_mpi_fills_its_own_host_first() -> None:
    mine = platform.node()
    assert own_first(["n1", mine, "n2"]) == [mine, "n1", "n2"]
    assert own_first(["n2", "n1"]) == ["n2", "n1"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for golden, text in rendered(Path(name)).items():
            (GOLDEN / golden).write_text(without_machine(text, Path(name)))
        Path("s.yaml").write_text(SUITE)
        planned = assay("plan", "s.yaml", cwd=Path(name), OMP_NUM_THREADS="3").stdout
        (GOLDEN / "plan.txt").write_text(without_machine(planned, Path(name)))
