"""Where a runnable script is: by name, because nobody imports a runnable folder."""

import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

from assay.errors import BadInput


def script_path(script: str) -> Path:
    """The file of a script such as `comms/bench`, in the checkout or in the installed wheel. Raises BadInput if absent."""
    spec = find_spec("assay." + script.replace("/", "."))
    if spec is None or spec.origin is None:
        raise BadInput(f"script {script!r} is not installed; reinstall assay")
    return Path(spec.origin)


def load_script(script: str) -> ModuleType:
    """A script's functions, for benchmarks of the script itself. Raises BadInput if it is absent."""
    spec = find_spec("assay." + script.replace("/", "."))
    if spec is None or spec.loader is None:
        raise BadInput(f"script {script!r} is not installed; reinstall assay")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
