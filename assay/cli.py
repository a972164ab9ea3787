"""The `assay` command. Nothing here imports torch: only ranks do, and `assay env` when it looks for devices."""

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from assay import __version__
from assay.errors import INTERRUPTED_EXIT, RUN_FAILED_EXIT, SENTENCE_MARK, AssayError, BadInput

if TYPE_CHECKING:
    from assay.suite import Suite

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
baseline_app = typer.Typer(no_args_is_help=True, help="Baselines: figures that other runs are scored against.")
app.add_typer(baseline_app, name="baseline")

MOST_SENTENCES = 8  # a file that is no suite at all would otherwise be complained about line by line

SuiteArgument = Annotated[str, typer.Argument(help="suite file, or the name of a shipped suite")]
RunArgument = Annotated[Path, typer.Argument(help="run folder, as `assay run` printed it")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE", help="change an option of all cases, or of one: case.option=value"
    ),
]
LauncherOption = Annotated[
    str | None, typer.Option(help="what starts the ranks: local, slurm or mpi [the suite's own, local without]")
]
NodesOption = Annotated[int | None, typer.Option("-N", "--nodes", help="number of hosts")]
PerNodeOption = Annotated[
    int | None, typer.Option("-n", "--per-node", help="ranks on each host, one for each of its accelerators")
]
SpawnOption = Annotated[
    str | None, typer.Option(help="Slurm: torchrun (one a host) or srun (every rank is a task) [torchrun]")
]
OneJobOption = Annotated[
    bool, typer.Option("--one-job", help="Slurm: the whole suite in one allocation instead of a job for every case")
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option(metavar="OPTION", help="Slurm: an option of the jobs, such as --sbatch=--partition=gpu [--exclusive]"),
]
HostfileOption = Annotated[Path | None, typer.Option(help="MPI: the file that names the hosts, one a line")]
ProfileOption = Annotated[str | None, typer.Option(help="scoring profile: a shipped name or a file")]
BaselineOption = Annotated[str | None, typer.Option(help="baseline: a shipped name or a file")]


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"assay {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Benchmarks for distributed training and communication on AI accelerators, with logs that others can check."""


@app.command()
def run(
    suite: Annotated[str | None, typer.Argument(help="suite file, or the name of a shipped suite")] = None,
    option: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="finish this run folder instead of making a new one")] = None,
    out: Annotated[Path, typer.Option(help="folder that the run folder is made in")] = Path("runs"),
    folder: Annotated[
        Path | None, typer.Option(help="the run folder itself; if it is there already, it is finished")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure the ceilings anew, even if lately measured")] = False,
    launcher: LauncherOption = None,
    nodes: NodesOption = None,
    per_node: PerNodeOption = None,
    spawn: SpawnOption = None,
    one_job: OneJobOption = False,
    sbatch: SbatchOption = None,
    hostfile: HostfileOption = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="look first whether all hosts answer, agree and reach each other")
    ] = False,
    case: Annotated[list[str] | None, typer.Option(help="with --resume: only this case, of several given ones")] = None,
) -> None:
    """Run a suite (or finish one), score it and write its report."""
    import os

    from assay.launchers.choice import runs_in_jobs

    if (suite is None) == (resume is None):
        raise BadInput("give a suite, or --resume with a run folder; not both")
    given = _launch(launcher, nodes, per_node, spawn, one_job, sbatch, hostfile, preflight)
    if resume is not None and (option or given or folder):
        raise BadInput("a run that has begun is finished as it began: --resume takes no other option; start a new one")
    if suite is not None and case:
        raise BadInput("--case is for --resume; for a new run, write a suite of the cases that you want")
    started = _resume(resume, case or []) if resume is not None else _load(str(suite), option, given)
    if runs_in_jobs(started.file, os.environ):
        _run_as_jobs(started, resume, _target(started, out, folder), named=folder is not None)
    else:
        _run_here(
            started, resume, _target(started, out, folder), fresh, named=folder is not None, report_at_end=not case
        )


def _run_here(
    suite: "Suite", resume: Path | None, target: Path, fresh: bool, *, named: bool, report_at_end: bool
) -> None:
    import os

    from rich.console import Console

    from assay.console import ConsoleWatcher
    from assay.launchers.choice import choose_launcher
    from assay.rundir import RUNNER, RunDir
    from assay.runner import create_run, examine, owner_is_gone, run_cases

    choose_launcher(suite.file, os.environ)  # what it needs must be here before anything is written
    if resume is None and not (target / "run.json").exists():
        folder = create_run(suite, target, may_exist=named)
    else:
        folder = RunDir.open(resume or target)
        folder.lock(RUNNER, owner_is_gone)
    # Schedulers end a job with SIGTERM: the folder is left in as true a state as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True)
    console.print(f"run folder: {folder.path}", markup=False, highlight=False)
    try:
        if suite.file.doctor:
            console.print("looking whether this machine is fit to be measured …", markup=False, highlight=False)
        checkup = examine(folder, suite)
        if checkup is not None:
            console.print(f"{checkup.sentence} More: assay doctor", markup=False, highlight=False)
        with ConsoleWatcher(console) as watcher:
            passed = run_cases(folder, suite, watcher, checkup=checkup, fresh=fresh)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is kept, go on with: assay run --resume {folder.path}", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT) from None
    if report_at_end:
        report(folder.path, None, None, None, None)
    raise typer.Exit(0 if passed else RUN_FAILED_EXIT)


def _run_as_jobs(suite: "Suite", resume: Path | None, target: Path, *, named: bool) -> None:
    from rich.console import Console

    from assay.jobs import check_jobs, run_jobs
    from assay.rundir import WATCHER, RunDir
    from assay.runner import create_run

    if resume is None and not (target / "run.json").exists():
        check_jobs(suite, target)
        folder = create_run(suite, target, WATCHER, may_exist=named)
    else:
        folder = RunDir.open(resume or target)
        folder.lock(WATCHER)
    console = Console(soft_wrap=True)
    console.print(f"run folder: {folder.path}", markup=False, highlight=False)
    try:
        passed = run_jobs(folder, suite, lambda text: console.print(text, markup=False, highlight=False))
    except KeyboardInterrupt:
        print(
            f"no longer watching; the jobs go on. Watch again with: assay run --resume {folder.path}, "
            f"end them with: assay cancel {folder.path}",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED_EXIT) from None
    report(folder.path, None, None, None, None)
    raise typer.Exit(0 if passed else RUN_FAILED_EXIT)


@app.command("cancel")
def cancel_run(path: RunArgument) -> None:
    """End the Slurm jobs of a run; what they have measured is kept."""
    from assay.jobs import cancel_jobs
    from assay.runner import resume_run

    folder, suite = resume_run(path)
    ended = cancel_jobs(folder, suite)
    print(f"cancelled: {', '.join(ended)}" if ended else "no job of this run is queued or running")


@app.command()
def plan(
    suite: SuiteArgument,
    option: Overrides = None,
    launcher: LauncherOption = None,
    nodes: NodesOption = None,
    per_node: PerNodeOption = None,
    spawn: SpawnOption = None,
    one_job: OneJobOption = False,
    sbatch: SbatchOption = None,
    hostfile: HostfileOption = None,
) -> None:
    """Print every case's exact command, environment and world, and the jobs. Starts nothing, writes nothing."""
    import os

    from assay.launchers.choice import runs_in_jobs
    from assay.runner import plan as plan_cases

    loaded = _load(suite, option, _launch(launcher, nodes, per_node, spawn, one_job, sbatch, hostfile, False))
    for item in plan_cases(loaded, Path("runs/RUN")):
        case = item.case
        print(f"{case.name}: {case.script}, world {case.world}, at most {case.time_limit:g} s")
        for name, value in item.command.env.items():
            print(f"    {name}={value}")
        print(f"    {shlex.join(item.command.argv)}")
    if runs_in_jobs(loaded.file, os.environ):
        from assay.jobs import groups
        from assay.launchers.sbatch import render

        for group in groups(loaded, Path("runs/RUN")):
            print(f"{group.job.file}:")
            print("".join(f"    {line}\n" for line in render(group.job).splitlines()), end="")


@app.command("list")
def list_all() -> None:
    """List suites, scripts, models, collectives, profiles and baselines."""
    from assay.catalogue import catalogue

    for heading, rows in catalogue():
        print(f"{heading}:")
        width = max(len(name) for name, _ in rows)
        for name, about in rows:
            print(f"    {name:<{width}}  {about}".rstrip())


@app.command()
def score(path: RunArgument, profile: ProfileOption = None, baseline: BaselineOption = None) -> None:
    """Score a run folder and print the table."""
    from rich.console import Console

    from assay.report.scorecard import score_tables
    from assay.results import evaluate

    # A log has no width of its own; a table that wraps in it cannot be read.
    console = Console(width=None if sys.stdout.isatty() else 160)
    card = evaluate(path, profile, baseline).scorecard
    for table in score_tables(card) if card else []:
        console.print(table)


@app.command()
def report(
    path: RunArgument,
    profile: ProfileOption = None,
    baseline: BaselineOption = None,
    out: Annotated[Path | None, typer.Option(help="folder to write into [the run folder]")] = None,
    datasheets: Annotated[Path | None, typer.Option(help="file with the printed peaks of your own devices")] = None,
) -> None:
    """Write report.html and report.md into a run folder (or another) and print a summary."""
    from rich.console import Console

    from assay.report.terminal import summarise
    from assay.results import evaluate, write_report

    result = evaluate(path, profile, baseline, datasheets)
    Console(soft_wrap=True).print(summarise(result, str(write_report(result, out or path))))


@baseline_app.command("record")
def baseline_record(
    path: RunArgument,
    out: Annotated[Path | None, typer.Option(help="file to write [<run>/baseline.yaml]")] = None,
) -> None:
    """Make a baseline of a run, for `assay score OTHER --baseline FILE`."""
    import yaml

    from assay.scoring.baseline import record_baseline
    from assay.scoring.reading import read_run

    file = out or path / "baseline.yaml"
    document = record_baseline(read_run(path), path.resolve().name)
    try:
        file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: {(error.strerror or str(error)).lower()}; give another --out") from error
    count = len(document["figures"]) + len(document["specifications"])
    print(f"{count} figures in {file}; use it with: assay report RUN --baseline {file}")


@app.command("import")
def import_output(
    tool: Annotated[str, typer.Argument(help="nccl-tests, osu or deepspeed: what printed the file")],
    file: Annotated[Path, typer.Argument(help="what it printed (nccl-tests: the JSON that it writes, too)")],
    out: Annotated[Path | None, typer.Option(help="run folder to make [runs/import-TOOL-TIME]")] = None,
    world: Annotated[int | None, typer.Option(help="number of ranks, where the file does not tell it (OSU)")] = None,
    op: Annotated[str | None, typer.Option(help="collective, for nccl-tests before its head named it")] = None,
    dtype: Annotated[str | None, typer.Option(help="element type, where the file does not tell it")] = None,
    backend: Annotated[str | None, typer.Option(help="backend, where the file does not tell it")] = None,
) -> None:
    """Turn what nccl-tests, OSU or DeepSpeed's suite printed into a run folder, with our formulas."""
    from assay.importers.folder import import_file
    from assay.runner import new_run_path

    target = out or new_run_path(f"import-{tool}", Path("runs"))
    print(f"{import_file(tool, file, target, world=world, op=op, dtype=dtype, backend=backend)}")
    print(f"see it with: assay report {target}")


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu, or any device of torch.accelerator")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print the whole checkup as JSON")] = False,
) -> None:
    """Say whether this machine is fit to be measured, and how small a difference can be decided on it.

    Exit code 1 if it is unfit.
    """
    import json

    from rich.console import Console

    from assay.doctor.checkup import examine
    from assay.doctor.screen import render

    checkup = examine(Path(), device)
    if as_json:
        print(json.dumps(checkup.document(), indent=2, ensure_ascii=False))
    else:
        Console(soft_wrap=True).print(render(checkup))
    raise typer.Exit(RUN_FAILED_EXIT if checkup.verdict == "unfit" else 0)


@app.command()
def env() -> None:
    """Print this machine, its software and its devices, as a run would record them."""
    import json
    import os

    from assay import machine
    from assay.device import describe_devices

    document = {
        "host": machine.host(),
        "software": machine.software(),
        "code": {key: value for key, value in machine.code().items() if key != "diff"},
        "environment": machine.environment(os.environ),
        "devices": describe_devices(),
    }
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _launch(
    launcher: str | None,
    nodes: int | None,
    per_node: int | None,
    spawn: str | None,
    one_job: bool,
    sbatch: list[str] | None,
    hostfile: Path | None,
    preflight: bool,
) -> dict[str, object]:
    """The keys of a suite that the command line gives. Raises BadInput for a word that is none of those known."""
    from assay.options.base import nearest

    for flag, word, known in (
        ("launcher", launcher, ["local", "slurm", "mpi"]),
        ("spawn", spawn, ["torchrun", "srun"]),
    ):
        if word is not None and word not in known:
            raise BadInput(f"--{flag} {word}: unknown{nearest(word, known)}")
    given: dict[str, object] = {"launcher": launcher, "nodes": nodes, "per_node": per_node, "spawn": spawn}
    given |= {"jobs": "suite" if one_job else None, "sbatch": sbatch or None, "preflight": preflight or None}
    given["hostfile"] = str(hostfile.resolve()) if hostfile else None
    return {key: value for key, value in given.items() if value is not None}


def _load(suite: str, option: list[str] | None, given: dict[str, object]) -> "Suite":
    import os

    from assay.catalogue import find_suite
    from assay.launchers.choice import launch_keys
    from assay.scoring.baseline import load_profile
    from assay.suite import load_suite

    overrides = {}
    for text in option or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"-o {text}: expected KEY=VALUE, for example -o steps=20")
        overrides[key] = value
    loaded = load_suite(find_suite(suite), overrides, lambda file: launch_keys(file, given, os.environ))
    if loaded.file.profile is not None:
        load_profile(loaded.file.profile)  # a name that does not exist must not be found out after hours of measuring
    return loaded


def _resume(path: Path, names: list[str]) -> "Suite":
    from dataclasses import replace

    from assay.options.base import nearest
    from assay.runner import resume_run

    _, suite = resume_run(path)
    known = [case.name for case in suite.cases]
    for name in names:
        if name not in known:
            raise BadInput(f"--case {name}: {path} has no such case{nearest(name, known)}")
    return replace(suite, cases=[case for case in suite.cases if case.name in names]) if names else suite


def _target(suite: "Suite", out: Path, folder: Path | None) -> Path:
    """Where the run goes. Raises BadInput if the folder that was asked for holds another run."""
    from assay.runner import new_run_path, resume_run

    if folder is None:
        return new_run_path(suite.file.name, out)
    if (folder / "run.json").exists():
        _, there = resume_run(folder)
        if [case.document() for case in there.cases] != [case.document() for case in suite.cases]:
            raise BadInput(
                f"--folder {folder}: holds a run of another suite, or with other options; give another folder"
            )
    return folder


def main() -> NoReturn:
    """Run the command; an error of ours is its one sentence and its exit code."""
    try:
        app(standalone_mode=True)
    except AssayError as error:
        sentences = str(error).splitlines()
        for line in sentences[:MOST_SENTENCES]:
            print(f"{SENTENCE_MARK}{line}", file=sys.stderr)
        if len(sentences) > MOST_SENTENCES:
            print(f"{SENTENCE_MARK}and {len(sentences) - MOST_SENTENCES} more", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(0)
