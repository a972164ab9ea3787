"""Where a runnable script is: by name, because nobody imports a runnable folder."""

from importlib.util import find_spec
from pathlib import Path

from assay.errors import BadInput


def script_path(script: str) -> Path:
    """The file of a script such as `comms/bench`, in the checkout or in the installed wheel. Raises BadInput if absent."""
    spec = find_spec("assay." + script.replace("/", "."))
    if spec is None or spec.origin is None:
        raise BadInput(f"script {script!r} is not installed; reinstall assay")
    return Path(spec.origin)
