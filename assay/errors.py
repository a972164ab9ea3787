"""The two ways in which something can end badly, and the exit codes that say so.

`BadInput` is the user's to mend (a key, a file, a size): one sentence, exit code 2, nothing written.
`RunFailed` is an event of the run (a rank died, the disk is full): one sentence, exit code 1, a record is kept.
"""

BAD_INPUT_EXIT = 2
RUN_FAILED_EXIT = 1
REPEAT_SECONDS = 2.0  # that rank 0 has to say what every rank has found
INTERRUPTED_EXIT = 130

# A failing rank prints its sentence behind this mark; the runner copies the first one into status.json.
SENTENCE_MARK = "assay: error: "


class AssayError(Exception):
    """An error with one sentence for the user. `exit_code` is the process's exit code."""

    exit_code = RUN_FAILED_EXIT


class BadInput(AssayError):
    """The input cannot be used; the sentence says where, what was expected and what to do."""

    exit_code = BAD_INPUT_EXIT


class RunFailed(AssayError):
    """Something failed while running; what was measured before is kept."""
