from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.catalogue import shipped_suites
from assay.errors import BadInput
from assay.launchers.choice import launch_keys
from assay.options import SCRIPTS, CommsOptions
from assay.suite import build_suite, layout_of, load_suite, parse_suite
from assay.suite_format import SuiteFile

HEAD = "assay: 1\nname: s\nlimits: false\ncases:\n"


def sentence(text: str, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        parse_suite(text, "s.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + " - {name: a, script: comms/bench, world: 2, options: {opz: x}}", "s.yaml:5: cases[0].options.opz: unknown key 'opz'; did you mean 'ops'?"),
        (HEAD + " - {name: a, script: comms/bech}", "s.yaml:5: cases[0].script: unknown script 'comms/bech'; did you mean 'comms/bench'?"),
        (HEAD + " - name: a\n   script: workloads/pretrain\n   options:\n     model: lama-tiny", "s.yaml:8: cases[0].options.model: unknown model 'lama-tiny'; did you mean 'llama-tiny'?"),
        (HEAD + " - name: a\n   script: workloads/pretrain\n   options:\n     steps: many", "s.yaml:8: cases[0].options.steps: input should be a valid integer, got 'many'"),
        ("assay: 1\nnaem: x\nname: s\ncases: [{name: a, script: comms/bench, world: 2}]", "s.yaml:2: naem: unknown key 'naem'; did you mean 'name'?"),
        ("assay: 1\ncases: [{name: a, script: comms/bench, world: 2}]", "s.yaml:1: name: key 'name' is missing"),
        (HEAD + " - {name: a, script: comms/bench, world: 2}\n - {name: A, script: comms/bench, world: 2}", "s.yaml: two cases are called 'A'; give each its own name"),
        (HEAD + " - {name: a, script: comms/bench, name: b}", "s.yaml:5: cases[0].name: key is given twice"),
        (HEAD + " - {name: ../a, script: comms/bench}", "s.yaml:5: cases[0].name: expected a name of letters, digits, '.', '_' and '-', got '../a'"),
        (HEAD + " - {name: a, script: comms/bench}", "s.yaml:5: cases[0].options: case 'a': collectives need at least 2 ranks, got 1; start with torchrun --nproc-per-node 2 or more"),
        (HEAD + " - {name: a, script: comms/bench, world: 3, options: {ops: all_gather, size: 1000}}", "s.yaml:5: cases[0].options: case 'a': --size 1000 does not divide for all_gather: 3 ranks × 4 bytes need a multiple of 12; the nearest is 996 or 1008"),
        (HEAD + " - {name: a, script: workloads/pretrain, world: 2, options: {engine: ddp, global_batch: 4}}", "s.yaml:5: cases[0].options: case 'a': --global-batch 4 does not divide by 2 ranks × --micro-batch 4; use a multiple of 8"),
        (HEAD + " - {name: a, script: workloads/pretrain, options: {out: /x}}", "s.yaml:5: cases[0].options.out: the runner sets 'out'; leave it out"),
        (HEAD + " - {name: a, script: workloads/pretrain, matrix: {modles: [x]}}", "s.yaml:5: cases[0].matrix.modles: unknown axis 'modles'; did you mean 'models'?"),
        (HEAD + " - {name: a, script: comms/bench, world: 200000}", "s.yaml:1: case 'a': 200000 ranks on one host; 1024 are the most; give -n with ranks per host"),
        (HEAD + " - {name: a, script: comms/bench, world: 2, options: {transport: mpi}}", "s.yaml:1: case 'a': the local launcher starts ranks that are no MPI world; run the suite with --launcher mpi"),
        (HEAD + " - {name: a, script: workloads/pretrain, options: {lr: .inf}}", "s.yaml:5: cases[0].options.lr: input should be a finite number, got inf"),
        (HEAD + " - [", "s.yaml:5: is no valid YAML: expected the node content, but found '<stream end>'"),
        ("- 1", "s.yaml: expected a mapping with the keys assay, name and cases; see suites/quick.yaml"),
        ("", "s.yaml: expected a mapping with the keys assay, name and cases; see suites/quick.yaml"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_key_and_what_was_expected(text: str, said: str) -> None:
    assert sentence(text) == said


MANY = "assay: 1\nname: s\nlimits: false\nlauncher: slurm\nper_node: 8\nnodes: 4\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MANY + "cases:\n - {name: a, script: comms/bench, world: 12}", "s.yaml:1: case 'a': 12 ranks do not fill hosts of 8 ranks evenly; give a multiple of 8, or another -n"),
        (MANY + "cases:\n - {name: a, script: comms/bench, world: 40}", "s.yaml:1: case 'a': 40 ranks, 8 on a host, need 5 hosts, but there are 4; ask for more hosts, or put more ranks on each with -n"),
        (MANY + "sbatch: [--exclusive, partition=gpu]\ncases:\n - {name: a, script: comms/bench}", "s.yaml:7: sbatch[1]: expected an option of sbatch in one line, such as --partition=gpu, got 'partition=gpu'"),
        (MANY + 'sbatch: ["--comment=a\\nrm -r x"]\ncases:\n - {name: a, script: comms/bench}', "s.yaml:7: sbatch[0]: expected an option of sbatch in one line, such as --partition=gpu, got '--comment=a\\nrm -r x'"),
        (MANY.replace("slurm", "slrum") + "cases:\n - {name: a, script: comms/bench}", "s.yaml:4: launcher: input should be 'local', 'slurm' or 'mpi', got 'slrum'"),
        (HEAD + " - {name: a, script: comms/bench, world: all}", "s.yaml:5: cases[0].world: all needs to know how many ranks there are on each host; give -n"),
        (HEAD + " - {name: a, script: comms/bench, matrix: {worlds: [2, all]}}", "s.yaml:5: cases[0].world: all needs to know how many ranks there are on each host; give -n"),
        (MANY.replace("nodes: 4", "") + "cases:\n - {name: a, script: comms/bench, world: all}", "s.yaml:8: cases[0].world: all needs to know how many hosts there are; give -N, and -n"),
        (HEAD + " - {name: a, script: comms/bench, world: every}", "s.yaml:5: cases[0].world"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_fit_on_hosts_are_one_sentence(text: str, said: str) -> None:
    assert sentence(text).splitlines()[0].startswith(said)


def test_all_ranks_are_those_of_every_host() -> None:
    text = MANY + "cases:\n - {name: a, script: comms/bench, world: all}\n"
    (case,) = parse_suite(text, "s.yaml").cases
    assert (case.world, layout_of(case, parse_suite(text, "s.yaml").file).nodes) == (32, 4)
    here = parse_suite(text.replace("slurm", "local"), "s.yaml")
    assert here.cases[0].world == 8, "the local launcher has one host"
    assert parse_suite(text, "s.yaml", {"world": "2"}).cases[0].world == 2
    without = text.replace("per_node: 8\n", "")
    assert parse_suite(without, "s.yaml", {"a.world": "4"}).cases[0].world == 4, (
        "nobody needs to know how many there are"
    )
    assert sentence(without, {"world": "all"}) == (
        "-o world: all needs to know how many ranks there are on each host; give -n"
    )
    (again,) = build_suite(parse_suite(text, "s.yaml").document(), "run.json").cases
    assert again.world == 32


def test_slurm_must_be_told_how_many_ranks_a_host_takes() -> None:
    text = HEAD.replace("limits", "launcher: slurm\nlimits") + " - {name: a, script: comms/bench, world: 2}\n"
    with pytest.raises(BadInput, match=r"^--launcher slurm: say how many ranks a host takes.*: -n 8$"):
        parse_suite(text, "s.yaml", launch=lambda file: launch_keys(file, {}, {}))
    assert parse_suite(text, "s.yaml", launch=lambda file: launch_keys(file, {"per_node": 8}, {})).file.per_node == 8


def test_ceilings_of_several_hosts_are_not_kept() -> None:
    text = (
        MANY.replace("limits: false", "limits: true")
        + "cases:\n - {name: a, script: comms/bench, matrix: {worlds: [8, 32]}}"
    )
    kept = {
        case.world: case.reuse_within > 0 for case in parse_suite(text, "s.yaml").cases if case.name[:6] == "limits"
    }
    assert kept == {8: True, 32: False}


def test_several_problems_are_said_together() -> None:
    text = HEAD + " - {name: a, script: workloads/pretrain, options: {step: 3, sed: 1}}"
    assert sentence(text).splitlines() == [
        "s.yaml:5: cases[0].options.step: unknown key 'step'; did you mean 'steps'?",
        "s.yaml:5: cases[0].options.sed: unknown key 'sed'; did you mean 'seed'?",
    ]


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    assert "too large for a suite" in sentence(bomb)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_suite(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(BadInput, match="is not UTF-8 text"):
        load_suite(tmp_path / "latin.yaml")


def test_a_matrix_gives_a_case_for_every_combination() -> None:
    text = HEAD + (
        " - name: p\n   script: workloads/pretrain\n   options: {engine: ddp}\n"
        "   matrix: {models: [llama-tiny, internlm-tiny], worlds: [2, 1]}\n"
    )
    assert "engine ddp spreads over ranks" in sentence(text)
    suite = parse_suite(text.replace("[2, 1]", "[2]"), "s.yaml")
    assert [(case.name, case.world) for case in suite.cases] == [("p-llama-tiny-2", 2), ("p-internlm-tiny-2", 2)]
    sizes = parse_suite(HEAD + " - {name: c, script: comms/bench, world: 2, matrix: {sizes: [1KiB, 64KiB]}}", "s.yaml")
    options = [case.options for case in sizes.cases]
    assert [o.size for o in options if isinstance(o, CommsOptions)] == [1024, 65536]
    assert [case.name for case in sizes.cases] == ["c-1KiB", "c-64KiB"]


def test_overrides_reach_all_cases_or_one() -> None:
    text = HEAD + " - {name: a, script: workloads/pretrain}\n - {name: b, script: workloads/pretrain}\n"
    suite = parse_suite(text, "s.yaml", {"steps": "7", "b.model": "internlm-tiny", "a.time_limit": "9"})
    assert [case.options.model_dump()["steps"] for case in suite.cases] == [7, 7]
    assert [case.options.model_dump()["model"] for case in suite.cases] == ["llama-tiny", "internlm-tiny"]
    assert [case.time_limit for case in suite.cases] == [9, 600]
    assert sentence(text, {"stesp": "7"}) == "-o stesp: no case has the option 'stesp'; did you mean 'steps'?"
    assert sentence(text, {"a.steps": "many"}).startswith("-o a.steps: input should be a valid integer")
    assert sentence(text, {"c.steps": "7"}) == "-o c.steps: the suite has no case 'c'; known: a, b"


def test_an_override_never_makes_a_name_lie() -> None:
    text = HEAD + " - {name: p, script: workloads/pretrain, matrix: {models: [llama-tiny]}}"
    assert sentence(text, {"p.model": "internlm-tiny"}) == (
        "-o p.model: case 'p' varies it in its matrix; change the suite instead"
    )
    assert "the suite has no case" not in sentence(text, {"p-llama-tiny.stesp": "1"})
    long = HEAD + f" - {{name: {'n' * 98}, script: workloads/pretrain, matrix: {{models: [llama-tiny]}}}}"
    assert "is too long" in sentence(long)


@pytest.mark.parametrize(
    "bad", ["world: true", "world: 2.0", "time_limit: '5'", "options: {steps: 5.0}", "options: {steps: true}"]
)
def test_values_are_not_bent_into_other_types(bad: str) -> None:
    assert "should be a valid" in sentence(HEAD + f" - {{name: a, script: workloads/pretrain, {bad}}}")


def test_ceilings_follow_the_devices_that_cases_run_on() -> None:
    text = (
        "assay: 1\nname: s\ncases:\n - {name: a, script: workloads/pretrain, options: {device: cpu, precision: bf16}}"
    )
    limits = parse_suite(text, "s").cases[0].options.model_dump()
    assert (limits["device"], limits["dtypes"]) == ("cpu", ("bfloat16",))
    assert parse_suite(text, "s", {"device": "cuda"}).cases[0].options.device == "cuda"


def test_ceilings_are_measured_first_for_every_number_of_ranks() -> None:
    text = "assay: 1\nname: s\ncases:\n - {name: a, script: comms/bench, world: 4}\n - {name: b, script: workloads/pretrain}"
    assert [case.name for case in parse_suite(text, "s").cases] == ["limits-1", "limits-4", "a", "b"]


@pytest.mark.parametrize("path", shipped_suites().values(), ids=shipped_suites())
def test_shipped_suites_are_valid_and_their_resolved_form_gives_the_same_cases(path: Path) -> None:
    suite = load_suite(path, launch=lambda file: {"per_node": 2})
    again = build_suite(suite.document(), "run.json")
    assert [case.document() for case in again.cases] == [case.document() for case in suite.cases]
    assert suite.file.description


KEYS = sorted(
    {"assay", "name", "cases", "script", "options", "matrix", "worlds", *SuiteFile.model_fields}
    | {name for model in SCRIPTS.values() for name in model.model_fields}
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([*SCRIPTS, "llama-tiny", "ddp", "1KiB", "all", 1, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_malformed_suites_never_give_a_traceback(whole: object, case: dict[str, Any]) -> None:
    likely = {"assay": 1, "name": "s", "cases": [{"name": "a", "script": "comms/bench", "world": 2, **case}]}
    for data in (whole, likely):
        try:
            suite = parse_suite(yaml.safe_dump(data, allow_unicode=True), "s.yaml")
        except BadInput as error:
            said = str(error)
        else:
            said = "s.yaml" if suite.cases else "a suite without cases"
        assert said.startswith("s.yaml")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="-:[]{}&*!|>'\"#%@`, \nabc1", max_size=80))
def test_arbitrary_text_never_gives_a_traceback(text: str) -> None:
    with pytest.raises(BadInput):
        parse_suite(text, "s.yaml")
