"""Run folders of trainings whose every record is planted, so that figures, scores and tables have known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.record import Header, RankFile, TagValue, encode_block, encode_header, read_rank_file
from assay.rundir import RunDir, Status, write_document
from assay.scoring.steps import PHASES

WARMUP = 2


@dataclass(frozen=True)
class Planted:
    """One training. seconds: step times of every rank; scalars: what rank 0 recorded once; phases: rank → phase → s."""

    name: str
    seconds: Sequence[Sequence[float]]
    script: str = "workloads/pretrain"
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, TagValue] = field(default_factory=dict)
    losses: Sequence[float] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    phases: Sequence[Mapping[str, Sequence[float | None]]] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str = "passed"
    tokens: float = 1024.0

    def lines(self, rank: int) -> str:
        """What the rank's file holds."""
        world, steps = len(self.seconds), len(self.seconds[rank])
        host = "left" if rank < (world + 1) // 2 else "right"
        header = Header(rank, world, rank, world, host, 1, "boot", "cpu", "Planted CPU", "gloo", self.script, 0.0, 0.0)
        tags = {"model": "llama-7b", "engine": "ddp", "data": "own.json", "dtype": "bfloat16", **self.tags}
        text = encode_header(header) + _block("step_time", "s", [9.0] * WARMUP, {**tags, "phase": "warmup"}, 0)
        text += _block("step_time", "s", self.seconds[rank], {**tags, "phase": "measured"}, WARMUP)
        for metric, samples in (self.phases[rank] if self.phases else {}).items():
            reason = "not measured here" if None in samples else None
            text += _block(f"{metric}_time", "s", samples, tags, WARMUP + steps, reason)
        if rank:
            return text
        losses = list(self.losses) if self.losses is not None else [8.0 - 0.1 * step for step in range(WARMUP + steps)]
        text += _block("loss", "1", losses[:WARMUP], {**tags, "phase": "warmup"}, 0)
        text += _block("loss", "1", losses[WARMUP:], {**tags, "phase": "measured"}, WARMUP)
        text += _block("tokens", "tokens", [self.tokens] * steps, {**tags, "phase": "measured"}, WARMUP)
        return text + "".join(_block(metric, "1", [value], tags) for metric, value in self.scalars.items())

    def document(self) -> dict[str, Any]:
        """The case as run.json has it."""
        options = {"global_batch": 128, "weights": None, **self.options}
        case = {"name": self.name, "script": self.script, "world": len(self.seconds), "options": options}
        return {**case, **({"labels": dict(self.labels)} if self.labels else {})}


def _block(
    metric: str,
    unit: str,
    samples: Sequence[float | None],
    tags: Mapping[str, TagValue],
    first_step: int | None = None,
    reason: str | None = None,
) -> str:
    return encode_block(metric, unit, samples, tags=tags, first_step=first_step, t_first=1.0, t_last=2.0, reason=reason)


def plant(folder: Path, *cases: Planted) -> Path:
    """A finished run folder of these cases."""
    suite = {"name": "planted", "cases": [case.document() for case in cases]}
    run = RunDir.create(folder, {"suite": suite, "cases": [case.name for case in cases], "host": {}, "code": {}})
    for case in cases:
        write_document(run.case(case.name).path / "case.json", case.document())
        attempt = run.case(case.name).new_attempt()
        for rank in range(len(case.seconds)):
            (attempt / f"rank-{rank:05d}.jsonl").write_text(case.lines(rank))
        failed = case.state != "passed"
        run.write_status(attempt, Status(case.state, "run", int(failed), 1.0, "rank 1 died" if failed else None))  # type: ignore[arg-type]
    run.unlock()
    return folder


def rank_files(folder: Path, case: Planted) -> list[RankFile]:
    """The records of one training, as read."""
    files = []
    for rank in range(len(case.seconds)):
        path = folder / f"rank-{rank:05d}.jsonl"
        path.write_text(case.lines(rank))
        files.append(read_rank_file(path))
    assert not any(file.garbage or file.torn for file in files)
    return files


def even(
    work: Sequence[Sequence[float]], waits: Sequence[Sequence[float | None]]
) -> list[dict[str, Sequence[float | None]]]:
    """Phases of each rank: its work all in forward, with its waiting as part of backward."""
    planted = []
    for own, waited in zip(work, waits, strict=True):
        rest = [0.1 + (wait or 0.0) for wait in waited]
        planted.append(
            {
                **{phase: [0.01] * len(own) for phase in PHASES},
                "forward": own,
                "backward": rest,
                "exposed_communication": waited,
            }
        )
    return planted
