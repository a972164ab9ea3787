"""Instruction records: reading, prompts, tokens and where the answer begins; bad files are named to the line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from assay.errors import BadInput
from assay.training.instructions import OWN_RECORDS, Record, Template, encode, own_records, read_records, read_template

GOOD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
END = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes and what occurs most often in our own records; token 0 ends a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([Template().prompt(record) + record.output for record in own_records(60)], trainer)
    return made


def test_our_own_records_are_always_the_same_and_right() -> None:
    records = own_records(OWN_RECORDS)
    assert records[:300] == own_records(300)
    assert len(set(records)) > OWN_RECORDS / 2
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.instruction, []).append(record)
    for record in by_task["Add the two numbers."]:
        a, b = map(int, record.input.split(" and "))
        assert record.output == f"{a} + {b} = {a + b}"
    for record in by_task["Sort the numbers, the smallest first."]:
        numbers = [int(word) for word in record.input.split(", ")]
        assert [int(word) for word in record.output.split(", ")] == sorted(numbers)
    assert any(not record.input for record in records)
    assert all(record.instruction and record.output for record in records)


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl"])
def test_lists_and_lines_are_read_alike(name: str, tmp_path: Path) -> None:
    items = [GOOD, {"instruction": "Say hello.", "output": "Hello \u2028 you."}, {**GOOD, "input": None, "more": 1}]
    text = json.dumps(items, indent=1) if name.endswith(".json") else "\n".join(map(json.dumps, items)) + "\n\n"
    (tmp_path / name).write_text(text)
    assert read_records(str(tmp_path / name)) == [
        Record("Add.", "1 and 2", "3"),
        Record("Say hello.", "", "Hello \u2028 you."),
        Record("Add.", "", "3"),
    ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (json.dumps(GOOD) + '\n{"instruction": "Ad', ", line 2: not valid JSON; expected one"),
        (json.dumps(GOOD) + "\n\n[1, 2]", ", line 3: expected {"),
        (json.dumps([GOOD])[:-1], ", line 1: not valid JSON; expected a list"),
        ("[\n" + json.dumps(GOOD) + ",\n oops]", ", line 3: not valid JSON"),
        (json.dumps([GOOD, {"instruction": "Add.", "answer": "3"}]), ", record 2: no text under the key 'output'"),
        (json.dumps([GOOD, GOOD, {**GOOD, "instruction": 7}]), ", record 3: no text under the key 'instruction'"),
        (json.dumps([GOOD, "Add."]), ", record 2: expected {"),
        ("[]", ": no records"),
        (" \n", ": no records"),
        (json.dumps(GOOD).encode() + b"\n\xff\xfe", ", line 2: not UTF-8"),
    ],
)
def test_bad_records_are_named_by_file_and_line_or_number(data: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(BadInput) as refused:
        read_records(str(path))
    assert str(refused.value).startswith(f"{path}{sentence}")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--data .*none\.json: cannot be read \(No such file or directory\); give own"):
        read_records(str(tmp_path / "none.json"))


@given(instruction=st.text(), material=st.text(min_size=1))
def test_whatever_a_record_holds_is_put_into_the_prompt_as_it_is(instruction: str, material: str) -> None:
    template = Template("<{instruction}|{input}>", "<{instruction}>")
    assert template.prompt(Record(instruction, material, "")) == f"<{instruction}|{material}>"
    assert template.prompt(Record("{input} {x} {", "", "")) == "<{input} {x} {>"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text('with_input: "Q: {instruction} ({input})\\nA: "\nwithout_input: "Q: {instruction}\\nA: "\n')
    assert read_template(path).prompt(Record("Add.", "1 and 2", "3")) == "Q: Add. (1 and 2)\nA: "
    path.write_text('with_input: "Q: {instruction}"\nwithout_input: "Q: {instruction}"\n')
    with pytest.raises(BadInput, match=r"expected a text with_input that holds \{instruction\} and \{input\}"):
        read_template(path)
    path.write_text("with_input: [")
    with pytest.raises(BadInput, match="neither YAML nor JSON"):
        read_template(path)


def test_tokens_are_prompt_answer_and_end(tokenizer: Tokenizer) -> None:
    records = own_records(40)
    template = Template()
    sequences = encode(records, template, tokenizer, END, 512)
    assert len(sequences) == 40
    for index, record in enumerate(records):
        row, answer = sequences.row(index), int(sequences.answers[index])
        assert len(row) == sequences.lengths[index]
        assert row[-1] == END
        assert tokenizer.decode(row[:answer].tolist()) == template.prompt(record)
        assert tokenizer.decode(row[answer:-1].tolist()) == record.output


@settings(max_examples=15)
@given(cutoff=st.integers(1, 120))
def test_the_cutoff_takes_the_end_and_never_more(tokenizer: Tokenizer, cutoff: int) -> None:
    records = own_records(20)
    whole, cut = (encode(records, Template(), tokenizer, END, limit) for limit in (512, cutoff))
    for index in range(20):
        long, short = whole.row(index), cut.row(index)
        # The end follows where it fits, and only there.
        np.testing.assert_array_equal(short, long[:cutoff])
        assert int(cut.answers[index]) == min(int(whole.answers[index]), len(short))


def test_an_answer_that_shares_a_token_with_the_prompt_is_learnt(tokenizer: Tokenizer) -> None:
    # "ab" may be one token where the prompt ends with a and the answer begins with b: that token is of the answer.
    record = Record("Write the wor", "", "d backwards.")
    sequences = encode([record], Template("{instruction}{input}", "{instruction}"), tokenizer, END, 512)
    learnt = sequences.row(0)[int(sequences.answers[0]) : -1].tolist()
    assert tokenizer.decode(learnt).endswith("d backwards.")
