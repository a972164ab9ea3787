"""What there is: suites, scripts, models, collectives, profiles, baselines."""

from importlib import resources
from pathlib import Path

from assay.bandwidth import COLLECTIVES
from assay.errors import BadInput
from assay.options import SCRIPTS
from assay.options.base import nearest
from assay.presets import ENCODERS, MODELS
from assay.scoring.baseline import shipped
from assay.suite import load_suite


def shipped_suites() -> dict[str, Path]:
    """Name → file of every suite that comes with assay, in a checkout or in a wheel."""
    found: dict[str, Path] = {}
    for item in resources.files("assay.suites").iterdir():
        if item.name.endswith(".yaml"):
            found[item.name.removesuffix(".yaml")] = Path(str(item))
    return dict(sorted(found.items()))


def find_suite(name: str) -> Path:
    """A suite's file: a path as it is, else a shipped suite of that name. Raises BadInput with the nearest name."""
    path = Path(name)
    if path.is_file():
        return path
    suites = shipped_suites()
    plain = path.name.removesuffix(".yaml")
    # From a wheel, `suites/quick.yaml` still means the shipped suite.
    if plain in suites and path.parent.name in ("", "suites"):
        return suites[plain]
    raise BadInput(f"suite {name!r}: no such file or shipped suite{nearest(plain, list(suites))}")


def catalogue() -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, one line about it)]) of everything there is."""
    suites = [
        (name, load_suite(path, launch=lambda file: {"per_node": 2}).file.description)
        for name, path in shipped_suites().items()
    ]
    models = [
        (
            name,
            f"{shape.family}, {shape.layers} layers, hidden {shape.hidden}, {shape.heads} heads, vocab {shape.vocab}",
        )
        for name, shape in MODELS.items()
    ] + [
        (name, f"bert, {shape.layers} layers, hidden {shape.hidden}, {shape.heads} heads, vocab {shape.vocab}")
        for name, shape in ENCODERS.items()
    ]
    return [
        ("suites", suites),
        ("scripts", [(name, model.synopsis) for name, model in SCRIPTS.items()]),
        ("models", models),
        ("collectives", [(name, "") for name in COLLECTIVES]),
        ("profiles", [(name, "") for name in shipped("profiles")]),
        ("baselines", [(name, "") for name in shipped("baselines")]),
    ]
