"""Our step loop against the best public ones: same model, data, batch, precision and optimizer, equal losses.

    python -m benchmarks.rivals                                     all rivals on pretraining, 1 and 2 processes
    python -m benchmarks.rivals --rival trainer --world 2
    python -m benchmarks.rivals --rival trainer --workload bert
    python -m benchmarks.rivals --rival trainer --workload finetune
    python -m benchmarks.rivals --rival accelerate --compile ours --set model=llama-100m --set seq_len=512

Rivals: Hugging Face's Trainer, a bare loop with accelerate, DeepSpeed's loop with ZeRO 1. torchtitan's trainer does not
run on a CPU (docs/performance.md). Every side lives in processes of its own and they take turns of a few steps, in the
order ABBA, so that a drifting machine favours nobody. A pair is one turn of each. It holds if the lower end of the 95 %
interval of the median ratio of tokens/s, ours/theirs, is at least 0.97; and only counts if the losses of all steps agree
to 1e-4.
"""

import argparse
import sys
from typing import Any

import psutil

from assay.errors import AssayError, BadInput
from assay.estimates import Estimate, compare_pairs
from benchmarks.rivals.bout import Bout
from benchmarks.rivals.turns import arena

REQUIRED = 0.97
AGREEMENT = 1e-4  # of losses, relative
WARMUP_PAIRS = 2
# Over several ranks a rival's BERT averages each rank's own mean, whose masked tokens differ in number: other losses.
WORLDS = {"pretrain": (1, 2), "bert": (1,), "finetune": (1, 2)}
# Like with like: data parallelism against the first two, the same partitioned optimizer against DeepSpeed.
RIVALS = {"trainer": "ddp", "accelerate": "ddp", "deepspeed": "zero1"}


def main() -> None:
    """Hold the bouts that the command line asks for and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rival", choices=sorted(RIVALS), action="append", help="which; more than once for several [all]"
    )
    parser.add_argument(
        "--world", type=int, action="append", help="processes; more than once for several [1 and 2, BERT 1]"
    )
    parser.add_argument("--workload", choices=("pretrain", "bert", "finetune"), default="pretrain")
    parser.add_argument("--pairs", type=int, default=30, help="interleaved pairs [30]")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn [4]")
    parser.add_argument(
        "--compile", choices=("none", "ours", "both"), default="none", help="who uses torch.compile [none]"
    )
    parser.add_argument("--engine", help="our engine [the one that is like the rival's]")
    parser.add_argument("--threads", type=int, help="of each process [cores / processes]")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the workload")
    given = parser.parse_args()
    try:
        for rival in given.rival or RIVALS:
            for world in given.world or WORLDS[given.workload]:
                print(_bout(given, rival, world), flush=True)
    except AssayError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _bout(given: argparse.Namespace, rival: str, world: int) -> str:
    options = dict(_option(text) for text in given.set)
    bout = Bout(given.workload, world, given.steps, given.pairs + WARMUP_PAIRS, options)
    engine = given.engine or ("none" if world == 1 and RIVALS[rival] == "ddp" else RIVALS[rival])
    checked = bout.training_options(engine)  # what is wrong with it is said here, once
    checked.check_world(world)
    ours = Bout(bout.workload, world, bout.steps, bout.turns, {**options, "compile": given.compile != "none"})
    sides = {
        "ours": _command(f"ours:{engine}", ours),
        "theirs": _command(rival + (":compiled" if given.compile == "both" else ""), bout),
    }
    threads = given.threads or max(1, (psutil.cpu_count(logical=False) or 1) // world)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    apart = 0.0
    with arena() as turns:
        for side, command in sides.items():
            turns.enter(side, command, world, {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"})
        for pair in range(bout.turns):
            order = ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours")
            taken = {side: turns.turn(side) for side in order}
            for side, turn in taken.items():
                seconds[side].append(turn.seconds)
            apart = max(apart, _apart(taken["ours"].losses, taken["theirs"].losses))
    measured = {side: [1 / one for one in times[WARMUP_PAIRS:]] for side, times in seconds.items()}
    ratio = compare_pairs(measured["theirs"], measured["ours"]).ratio
    how = f"compile {given.compile}, " if given.compile != "none" else ""
    return (
        f"{given.workload} {checked.model}, {world} × {threads} threads, {how}ours ({engine}) / {rival}: "
        f"{verdict(ratio)}; {given.pairs} pairs of {given.steps} steps, losses within {apart:.1e}"
        + ("" if apart <= AGREEMENT else f": MORE THAN {AGREEMENT:g}, the comparison does not count")
    )


def _command(side: str, bout: Bout) -> list[str]:
    module = ["-m", "benchmarks.rivals.side", side, bout.as_text()]
    if bout.world == 1:
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(bout.world), *module]


def _apart(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def _option(text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark:
        raise BadInput(f"--set {text}: expected OPTION=VALUE, such as --set seq_len=256")
    return name.replace("-", "_"), value


def verdict(ratio: Estimate) -> str:
    """The ratio, its interval, and whether the requirement holds."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f}: undecided, {ratio.method}"
    word = "holds" if ratio.low >= REQUIRED else "fails" if ratio.high < REQUIRED else "undecided"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], at least {REQUIRED} required: {word}"


if __name__ == "__main__":
    main()
