"""The `assay` command. Nothing here imports torch: only ranks do, and `assay env` when it looks for devices."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from assay import __version__
from assay.errors import RUN_FAILED_EXIT, SENTENCE_MARK, AssayError, BadInput
from assay.launch_flags import (
    HostfileOption,
    LauncherOption,
    NodesOption,
    OneJobOption,
    PerNodeOption,
    SbatchOption,
    SpawnOption,
    launch_settings,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
baseline_app = typer.Typer(no_args_is_help=True, help="Baselines: figures that other runs are scored against.")
app.add_typer(baseline_app, name="baseline")

MOST_SENTENCES = 8  # a file that is no suite at all would otherwise be complained about line by line

SuiteArgument = Annotated[
    str, typer.Argument(help="suite file, the name of a shipped suite, or a script such as comms/bench")
]
RunArgument = Annotated[Path, typer.Argument(help="run folder, as `assay run` printed it")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE", help="change an option of all cases, or of one: case.option=value"
    ),
]
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
    suite: Annotated[
        str | None, typer.Argument(help="suite file, shipped suite, or a script such as comms/bench")
    ] = None,
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
    from assay.undertaking import begin, go_on, read_suite

    if (suite is None) == (resume is None):
        raise BadInput("give a suite, or --resume with a run folder; not both")
    given = launch_settings(launcher, nodes, per_node, spawn, one_job, sbatch, hostfile, preflight)
    if resume is not None and (option or given or folder):
        raise BadInput("a run that has begun is finished as it began: --resume takes no such option; start a new one")
    if suite is not None and case:
        raise BadInput("--case is for --resume; for a new run, write a suite of the cases that you want")
    run = go_on(resume, case or []) if resume else begin(read_suite(str(suite), option or [], given), out, folder)
    passed = run.see_through(fresh=fresh)
    if not case:  # what is left of the run may be still to come
        report(run.path, None, None, None, None)
    raise typer.Exit(0 if passed else RUN_FAILED_EXIT)


@app.command("cancel")
def cancel_run(path: RunArgument) -> None:
    """End the Slurm jobs of a run; what they have measured is kept."""
    from assay.jobs import cancel_jobs
    from assay.launchers.sbatch import check_here
    from assay.runner import resume_run

    check_here()
    folder, suite = resume_run(path)
    ended = cancel_jobs(folder, suite)
    print(f"cancelled: {', '.join(ended)}" if ended else "no job of this run is queued or running")


@app.command()
def preflight(
    launcher: LauncherOption = None,
    nodes: NodesOption = None,
    per_node: PerNodeOption = None,
    hostfile: HostfileOption = None,
    folder: Annotated[Path, typer.Option(help="where results are going to be written")] = Path("runs"),
    torch: Annotated[
        bool, typer.Option("--torch", help="count accelerators by torch; slower, knows every vendor")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="file to write everything into")] = None,
) -> None:
    """Say whether every host answers, agrees with the others and reaches them. Exit code 1 if not.

    -n: accelerators that each host should have. With --launcher slurm, start it inside a job: salloc -N 4 assay preflight …
    """
    import os

    from assay.launchers.choice import choose_launcher, launch_keys
    from assay.preflight.launching import preflight as look
    from assay.suite_format import Launch

    given = launch_settings(launcher, nodes, per_node, None, False, None, hostfile, False)
    keys = Launch.model_validate(launch_keys({"per_node": per_node or 1}, given, os.environ))
    chosen = choose_launcher(keys, os.environ)
    wanted = nodes or max(1, len(chosen.hosts))
    if wanted > max(1, len(chosen.hosts)):
        raise BadInput(f"-N {wanted}: there are {max(1, len(chosen.hosts))} hosts here; ask for more, or name them")
    raise typer.Exit(look(chosen, wanted, folder, per_node, json=json, torch=torch))


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
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="memory of one device, such as 80GB: what cannot fit is refused")
    ] = None,
) -> None:
    """Print every case's exact command, environment and world, what trainings are going to need, and the jobs.

    Starts nothing, writes nothing. Memory, FLOPs and times are estimates. Exit code 2 if a training cannot fit.
    """
    import os

    from assay.launchers.choice import runs_in_jobs
    from assay.planning import misfits, print_plan
    from assay.runner import plan as plan_cases
    from assay.undertaking import read_suite
    from assay.units import parse_size

    try:
        available = parse_size(device_memory) if device_memory else None
    except ValueError as error:
        raise BadInput(f"--device-memory: {error}") from None
    loaded = read_suite(
        suite, option or [], launch_settings(launcher, nodes, per_node, spawn, one_job, sbatch, hostfile, False)
    )
    for item in plan_cases(loaded, Path("runs/RUN")):
        case = item.case
        print(f"{case.name}: {case.script}, world {case.world}, at most {case.time_limit:g} s")
        for name, value in item.command.env.items():
            print(f"    {name}={value}")
        print(f"    {shlex.join(item.command.argv)}")
        print_plan(case)
    if runs_in_jobs(loaded.file, os.environ):
        from assay.jobs import groups
        from assay.launchers.sbatch import render

        for group in groups(loaded, Path("runs/RUN")):
            print(f"{group.job.file}:")
            print("".join(f"    {line}\n" for line in render(group.job).splitlines()), end="")
    lacking = misfits(loaded, available)
    if lacking:
        raise BadInput("\n".join(lacking))


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
