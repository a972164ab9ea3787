"""Text to train on: the prose that ships with Python, or a folder of .txt and .jsonl files."""

import importlib
import json
from pathlib import Path

from assay.errors import BadInput


def read_documents(source: str) -> list[str]:
    """Documents in a fixed order. source: "text" (the language reference in the standard library) or a folder.

    A .txt file is one document; each line of a .jsonl file is one, under the key "text". Folders are searched deeply,
    files taken in the order of their paths. Raises BadInput naming folder, file and line of what cannot be used.
    """
    if source == "text":
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return [topics[name] for name in sorted(topics)]
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise BadInput(f"--data {source}: {what}; give dummy, text, or a folder of .txt or .jsonl files")
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".jsonl") and path.is_file())
    if not files:
        raise BadInput(f"--data {source}: no .txt or .jsonl file in this folder; put the text to train on there")
    return [document for path in files for document in _documents(path)]


def _documents(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); make it readable or take it out") from None
    if path.suffix == ".jsonl":
        # Only \n ends a line of JSON lines; splitlines would also cut at characters that strings may hold.
        lines = enumerate(data.split(b"\n"), 1)
        return [_jsonl_text(path, number, line) for number, line in lines if line.strip()]
    try:
        return [data.decode("utf-8")]
    except UnicodeDecodeError as error:
        line_number = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line_number}: not UTF-8; convert the file or take it out") from None


def _jsonl_text(path: Path, number: int, line: bytes) -> str:
    where = f"{path}, line {number}"
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f'{where}: not valid JSON; expected one object like {{"text": "..."}} per line') from None
    text = item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'{where}: no text under the key "text"; expected one object like {{"text": "..."}} per line')
    if not is_whole(text):
        raise BadInput(f"{where}: half of a surrogate pair in its text, which no text can hold; take it out")
    return text


def is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON's escapes can hold halves of characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
