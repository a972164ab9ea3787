import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.options import SCRIPTS, CommsOptions, PretrainOptions, parse_command_line
from assay.options.base import build_parser, command_line

COMMS = st.builds(
    CommsOptions,
    out=st.none() | st.just(Path("somewhere/with space")),
    ops=st.lists(st.sampled_from(["all_reduce", "pt2pt"]), min_size=1, max_size=2, unique=True).map(tuple),
    size=st.none() | st.integers(1, 1 << 40),
    budget=st.floats(1e-3, 1e6),
    seed=st.integers(0, 2**31 - 1),
    style=st.sampled_from(["nccl", "deepspeed"]),
)


@given(COMMS)
def test_a_command_line_gives_exactly_its_options(options: CommsOptions) -> None:
    assert parse_command_line(CommsOptions, None, command_line(options)) == options


def test_bad_options_are_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(PretrainOptions, None, ["--model", "lama-tiny"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "assay: error: --model: unknown model 'lama-tiny'; did you mean 'llama-tiny'?\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--split", "4"], "--split: expected div:N or mod:N, such as div:4, got '4'"),
        (["--matrix", "m.txt"], "--matrix is the traffic of all_to_all_v; add that to --ops, or leave --matrix out"),
        (["--ops", "all_reduce,,broadcast"], "--ops: there is nothing between two commas in 'all_reduce,,broadcast'"),
        (["--bogus", "1"], "unknown argument '--bogus'"),
        (["--warmpu", "1"], "unknown argument '--warmpu'; did you mean '--warmup'?"),
        (["--size"], "argument --size: expected one argument; --help tells what there is"),
        (["--transport", "mpi", "--backend", "nccl"], "--backend nccl is torch.distributed's; leave it out"),
        (["--transport", "mpi", "--graph"], "--graph replays a captured call of torch; leave out --async and MPI"),
    ],
)
def test_an_unknown_or_impossible_argument_is_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(CommsOptions, None, argv)
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("assay: error: ")
    assert sentence in said


def test_groups_of_unlike_or_all_ranks_are_refused() -> None:
    assert CommsOptions(split="mod:2").groups(4) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="--split mod:1: 4 ranks are one group; leave it out, or give another"):
        CommsOptions(split="mod:1").check_world(4)
    with pytest.raises(ValueError, match="4 ranks fall into groups of 1 and 3; expected groups of one size"):
        CommsOptions(split="div:3").check_world(4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 3 1\n1 4 1\n1 1 1\n", "3 lines for 2 ranks; give one line a rank"),
        ("0 3\n1 x\n", "line 2: 'x' should be a number, 0 or more"),
        ("0 3\n1\n", "line 2: 1 numbers, the lines before have 2"),
        ("0 0\n0 0\n", "every number is 0; at least one rank must send something"),
    ],
)
def test_a_matrix_that_does_not_fit_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    matrix = tmp_path / "traffic.txt"
    matrix.write_text(text)
    with pytest.raises(ValueError, match=f"--matrix {matrix}: {sentence}"):
        CommsOptions(ops=("all_to_all_v",), matrix=matrix).check_world(2)


def test_sizes_of_a_sweep_are_whole_and_without_repeats() -> None:
    options = CommsOptions(ops=("all_gather",), min=1, max=4096, factor=2)
    sizes = list(options.sizes("all_gather", 3, 4))
    assert sizes == sorted(set(sizes))
    assert all(size % 12 == 0 for size in sizes)
    assert sizes[-1] == 4092


def test_torchrun_leaves_our_options_alone() -> None:
    """torchrun takes an abbreviation of its own options for itself, even behind the script's name."""
    usage = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    theirs = {word.strip("[],=").split("=")[0].replace("_", "-") for word in usage.split() if "--" in word}
    theirs = {word[word.index("--") :] for word in theirs}
    for script, model in SCRIPTS.items():
        for action in build_parser(model, "")._actions:
            safe = [flag for flag in action.option_strings if not any(own.startswith(flag) for own in theirs)]
            assert safe or action.dest == "help", f"{script}: no name of {action.option_strings} gets through torchrun"
