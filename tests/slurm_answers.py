"""Executables that stand for Slurm's commands and print prepared answers: real processes, without a Slurm."""

from pathlib import Path


def answer(folder: Path, command: str, out: str = "", err: str = "", code: int = 0) -> Path:
    """Make `folder`/`command`; the file that its words are going to be in, beside those of its environment and stdin."""
    folder.mkdir(exist_ok=True)
    for stream, text in (("out", out), ("err", err)):
        (folder / f"{command}.{stream}").write_text(text)
    file = folder / command
    file.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" > "$0.argv"\nenv > "$0.env"\ncat > "$0.in"\n'
        f'cat "$0.out"\ncat "$0.err" >&2\nexit {code}\n'
    )
    file.chmod(0o755)
    return folder / f"{command}.argv"
