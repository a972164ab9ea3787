"""Instruction records of the Alpaca form, the prompts made of them, and their tokens.

The records `own` are made by this file, by rule and not by hand, so there is no text of others in them; they are under
this project's licence. The template is worded by us: a task, perhaps its material, then the answer, as in Alpaca's.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer

from assay.errors import BadInput
from assay.training.text import is_whole
from assay.training.weights import raw_bits

OWN = "own"
OWN_RECORDS = 1024
AT_ONCE = 256  # records tokenized together, on all cores

_FORM = '{"instruction": "...", "input": "...", "output": "..."}'


@dataclass(frozen=True)
class Record:
    """One instruction with its answer. `input`: what the instruction is about; may be empty."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Template:
    """The text around an instruction; the answer follows directly after it."""

    with_input: str = (
        "Below are a task and the material it is about. Write the answer that the task asks for.\n\n"
        "### Task:\n{instruction}\n\n### Material:\n{input}\n\n### Answer:\n"
    )
    without_input: str = (
        "Below is a task. Write the answer that it asks for.\n\n### Task:\n{instruction}\n\n### Answer:\n"
    )

    def prompt(self, record: Record) -> str:
        """All that the model reads before the answer."""
        words = {"instruction": record.instruction, "input": record.input}
        # In one pass, and no str.format: braces inside a record stay what they are.
        text = self.with_input if record.input else self.without_input
        return re.sub(r"\{(instruction|input)\}", lambda found: words[found[1]], text)


@dataclass(frozen=True)
class Sequences:
    """Tokens of all records, one behind the other. starts: [n + 1], record i is tokens[starts[i]:starts[i + 1]].

    answers: [n], how many tokens of each come before its answer.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    answers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [n]."""
        return np.diff(self.starts)

    def row(self, index: int) -> NDArray[np.int64]:
        """The tokens of one sequence."""
        return self.tokens[self.starts[index] : self.starts[index + 1]].astype(np.int64)


def encode(records: Sequence[Record], template: Template, tokenizer: Tokenizer, end: int, cutoff: int) -> Sequences:
    """Prompt and answer of each record as tokens, at most `cutoff`, with the token `end` behind what was not cut."""
    rows: list[NDArray[np.int32]] = []
    answers: list[int] = []
    for first in range(0, len(records), AT_ONCE):
        group = records[first : first + AT_ONCE]
        prompts = [template.prompt(record) for record in group]
        texts = [prompt + record.output for prompt, record in zip(prompts, group, strict=True)]
        for prompt, found in zip(prompts, tokenizer.encode_batch(texts), strict=True):
            ids = found.ids[:cutoff]
            # By place in the text: the prompt alone might be cut into other tokens than the prompt before an answer.
            behind = np.asarray(found.offsets, dtype=np.int64).reshape(-1, 2)[: len(ids), 1] > len(prompt)
            answers.append(int(behind.argmax()) if behind.any() else len(ids))
            if len(ids) < cutoff and ids[-1:] != [end]:
                ids.append(end)
            rows.append(np.asarray(ids, dtype=np.int32))
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    tokens = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
    return Sequences(tokens, starts, np.asarray(answers, dtype=np.int64))


def read_template(path: Path | None) -> Template:
    """The template in a YAML or JSON file; our own if there is none. Raises BadInput naming what is missing."""
    if path is None:
        return Template()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--template {path}: cannot be read ({error.strerror}); give a YAML or JSON file") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise BadInput(f"--template {path}: neither YAML nor JSON; expected with_input and without_input") from None
    texts: dict[str, str] = {}
    for name, holes in (("with_input", ("{instruction}", "{input}")), ("without_input", ("{instruction}",))):
        text = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(text, str) or any(hole not in text for hole in holes):
            raise BadInput(f"--template {path}: expected a text {name} that holds {' and '.join(holes)}; add it")
        texts[name] = text
    return Template(**texts)


def read_records(source: str) -> list[Record]:
    """The records `source` names: "own", or a file with a JSON list of them or one a line (JSON lines).

    Raises BadInput naming file and line or record of what cannot be used.
    """
    if source == OWN:
        return own_records(OWN_RECORDS)
    path = Path(source)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(
            f"--data {source}: cannot be read ({error.strerror}); give own, or a .json or .jsonl file of records"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line}: not UTF-8; convert the file") from None
    items = _listed(path, text) if text.lstrip().startswith("[") else _lined(path, text)
    records = [_record(where, item) for where, item in items]
    if not records:
        raise BadInput(f"{path}: no records; expected a list of {_FORM}, or one a line")
    return records


def _listed(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadInput(f"{path}{line}: not valid JSON; expected a list of {_FORM}") from None
    return ((f"{path}, record {number}", item) for number, item in enumerate(items, 1))


def _lined(path: Path, text: str) -> Iterator[tuple[str, object]]:
    # Only \n ends a line of JSON lines; splitlines would also cut at characters that strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"{path}, line {number}: not valid JSON; expected one {_FORM} a line") from None


def _record(where: str, item: object) -> Record:
    if not isinstance(item, Mapping):
        raise BadInput(f"{where}: expected {_FORM}, got {type(item).__name__}")
    # Files of this form leave "input" out, or null, where there is none.
    found = {"input": "", **{key: value for key, value in item.items() if value is not None}}
    for key in ("instruction", "input", "output"):
        if not isinstance(found.get(key), str):
            raise BadInput(f"{where}: no text under the key {key!r}; expected {_FORM}")
        if not is_whole(found[key]):
            raise BadInput(
                f"{where}: half of a surrogate pair under the key {key!r}, which no text can hold; take it out"
            )
    return Record(found["instruction"], found["input"], found["output"])


Draw = Callable[[int], int]
"""A number below the one given."""

_WORDS = (
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbour", "island", "jacket", "kettle",
    "ladder", "market", "needle", "orange", "pencil", "quarry", "river", "saddle", "table", "umbrella", "valley",
    "window", "yellow", "zebra",
)  # fmt: skip
_UNITS = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("kilograms", "grams", 1000),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
)


def own_records(count: int) -> list[Record]:
    """Small tasks with one right answer each: numbers, words, lists, units. The same ones at any time and anywhere."""
    return [_own_record(number) for number in range(count)]


def _own_record(number: int) -> Record:
    bits = iter(raw_bits(0, f"instruction {number}", 0, 32))
    return _KINDS[number % len(_KINDS)](lambda below: int(next(bits) % np.uint64(below)))


def _words(draw: Draw, count: int) -> list[str]:
    return [_WORDS[draw(len(_WORDS))] for _ in range(count)]


def _sum(draw: Draw) -> Record:
    a, b = draw(100), draw(100)
    return Record("Add the two numbers.", f"{a} and {b}", f"{a} + {b} = {a + b}")


def _product(draw: Draw) -> Record:
    a, b = 2 + draw(11), 2 + draw(11)
    return Record(f"What is {a} times {b}?", "", f"{a} times {b} is {a * b}.")


def _reversed(draw: Draw) -> Record:
    (word,) = _words(draw, 1)
    return Record("Write the word backwards.", word, word[::-1])


def _letters(draw: Draw) -> Record:
    (word,) = _words(draw, 1)
    letter = word[draw(len(word))]
    return Record(f"How often does the letter {letter} occur in {word}?", "", f"{word.count(letter)}")


def _sorted(draw: Draw) -> Record:
    numbers = [draw(100) for _ in range(3 + draw(6))]
    given, answer = (", ".join(map(str, these)) for these in (numbers, sorted(numbers)))
    return Record("Sort the numbers, the smallest first.", given, answer)


def _largest(draw: Draw) -> Record:
    numbers = [draw(100) for _ in range(3 + draw(8))]
    return Record("Name the largest of these numbers.", ", ".join(map(str, numbers)), f"{max(numbers)}")


def _alphabet(draw: Draw) -> Record:
    words = _words(draw, 3 + draw(6))
    return Record("Put the words into alphabetical order.", " ".join(words), " ".join(sorted(words)))


def _units(draw: Draw) -> Record:
    (whole, part, each), amount = _UNITS[draw(len(_UNITS))], 2 + draw(30)
    return Record(f"Convert {amount} {whole} to {part}.", "", f"{amount} {whole} are {amount * each} {part}.")


def _multiples(draw: Draw) -> Record:
    step, count = 2 + draw(11), 3 + draw(18)
    answer = ", ".join(str(step * i) for i in range(1, count + 1))
    return Record(f"List the first {count} multiples of {step}.", "", answer)


def _capitals(draw: Draw) -> Record:
    words = _words(draw, 2 + draw(5))
    return Record("Write the words in capital letters.", " ".join(words), " ".join(words).upper())


_KINDS: tuple[Callable[[Draw], Record], ...] = (
    _sum, _product, _reversed, _letters, _sorted, _largest, _alphabet, _units, _multiples, _capitals
)  # fmt: skip
