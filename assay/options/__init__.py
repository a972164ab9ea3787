"""One option model per script: the suite validates with it, the script derives its command line from it."""

from assay.options.base import Options, ScriptOptions, parse_command_line, problems
from assay.options.bert import BertOptions
from assay.options.comms import CommsOptions
from assay.options.finetune import FinetuneOptions
from assay.options.limits import LimitsOptions
from assay.options.links import LinksOptions
from assay.options.noise import NoiseOptions
from assay.options.overlap import OverlapOptions
from assay.options.pretrain import PretrainOptions
from assay.options.specs import SpecsOptions
from assay.options.training import TrainingOptions

# Script name as suites write it → its options. The file is <name>.py in the folder of that name.
SCRIPTS: dict[str, type[ScriptOptions]] = {
    "comms/bench": CommsOptions,
    "comms/links": LinksOptions,
    "comms/overlap": OverlapOptions,
    "specs/bench": SpecsOptions,
    "specs/limits": LimitsOptions,
    "specs/noise": NoiseOptions,
    "workloads/bert": BertOptions,
    "workloads/finetune": FinetuneOptions,
    "workloads/pretrain": PretrainOptions,
}

__all__ = [
    "SCRIPTS",
    "BertOptions",
    "CommsOptions",
    "FinetuneOptions",
    "LimitsOptions",
    "LinksOptions",
    "NoiseOptions",
    "Options",
    "OverlapOptions",
    "PretrainOptions",
    "ScriptOptions",
    "SpecsOptions",
    "TrainingOptions",
    "parse_command_line",
    "problems",
]
