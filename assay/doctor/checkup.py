"""`assay doctor`: every check, one noise run, one verdict.

Nothing overlaps, because each part would be what the next one finds: first two snapshots of the counters half a second
apart, in which nothing of ours runs; then who is on the device, before we are; then the noise run, alone; then a third
snapshot, which shows what the machine does while it works (quota, heat, steal).
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from assay.doctor import accelerator, cores, load, memory, settings, software
from assay.doctor.finding import STATES, Finding
from assay.doctor.host import Host
from assay.doctor.noise import Noise, confidence, drift_finding, noise_finding
from assay.doctor.snapshot import Snapshot, take
from assay.doctor.trial import LIMIT_SECONDS, Trial, run_trial
from assay.report.quantities import count_of

SCHEMA = "assay-checkup/1"
SAMPLE_SECONDS = 0.5  # 50 ticks of a core, so that a share of two in a hundred can be seen

Verdict = Literal["fit", "fit with doubts", "unfit"]


@dataclass(frozen=True)
class Checkup:
    """What was found. noises: per kind of work, then of the whole case; empty if the noise run failed.

    device: name and type; None if the noise run did not get that far. seconds: how long all of it took. when: ISO 8601.
    """

    findings: tuple[Finding, ...]
    noises: tuple[Noise, ...]
    device: str | None
    seconds: float
    when: str

    @property
    def verdict(self) -> Verdict:
        """unfit with any bad finding, fit with doubts with any warning; what is unknown counts for neither."""
        states = {finding.state for finding in self.findings}
        return "unfit" if "bad" in states else "fit with doubts" if "warn" in states else "fit"

    @property
    def sentence(self) -> str:
        """The verdict with its reasons, in one sentence."""
        named = {state: ", ".join(f.check for f in self.findings if f.state == state) for state in STATES}
        if self.verdict == "unfit":
            return f"Unfit: do not measure here before this is mended: {named['bad']}."
        if self.verdict == "fit with doubts":
            return f"Fit with doubts: figures may be off because of: {named['warn']}."
        count = sum(finding.state == "unknown" for finding in self.findings)
        return "Fit: nothing found that would spoil a figure" + (
            f" ({count_of(count, 'check')} unknown)." if count else "."
        )

    def document(self) -> dict[str, Any]:
        """Everything as plain values for JSON, the derived ones too, so that a reader needs no formula."""
        return {
            "schema": SCHEMA,
            "when": self.when,
            "seconds": self.seconds,
            "device": self.device,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "noise": [_noise_document(noise) for noise in self.noises],
            "findings": [asdict(finding) for finding in self.findings],
        }


def _noise_document(noise: Noise) -> dict[str, Any]:
    return {
        "work": noise.work,
        "pairs": [list(pair) for pair in noise.pairs],
        "ratios": list(noise.ratios),
        "noise": noise.value,
        "drift": noise.drift,
        "confidence": confidence(len(noise.pairs)),
    }


def examine(
    out: Path | None = None,
    device: str = "auto",
    root: Path = Path("/"),
    env: Mapping[str, str] | None = None,
    python: str | None = None,
    limit: float = LIMIT_SECONDS,
) -> Checkup:
    """Check the host below `root` and run the A/A noise case on `device`. Takes some seconds.

    out: where the run will go; env: the environment that is judged (this process's without it); python: the interpreter
    of the noise run; limit: seconds after which that is ended.

    Raises BadInput if torch does not offer `device`. A suite then stops before its first case, each of which would end
    with the same sentence. Nothing else is raised: any other failure of the noise run is a finding.
    """
    when, begun = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
    host = Host(root) if env is None else Host(root, env)
    first = take(host)
    time.sleep(SAMPLE_SECONDS)
    second = take(host)
    gpus = accelerator.read_nvml()
    trial = run_trial(device, python, limit)
    third = take(host)
    findings = judge(host, out, (first, second, third), gpus, trial)
    return Checkup(findings, trial.noises, trial.device, time.monotonic() - begun, when)


def judge(
    host: Host, out: Path | None, moments: tuple[Snapshot, Snapshot, Snapshot], gpus: accelerator.Gpus, trial: Trial
) -> tuple[Finding, ...]:
    """Every finding, what weighs most first. moments: before and after resting, and after the noise run."""
    first, second, third = moments
    found = [
        *([trial.finding] if trial.finding else [noise_finding(trial.noises), drift_finding(trial.noises)]),
        load.other_load(host, first, second),
        load.stolen_time(host, (first, second), (second, third)),
        load.throttling(second, third),
        load.quota(host),
        cores.heat(second, third),
        cores.governor(host),
        cores.boost(host),
        cores.clock_source(host),
        cores.cores(host),
        cores.affinity(host),
        cores.numa(host),
        memory.memory(host),
        memory.memory_limit(host),
        memory.swap(host, first, third),
        memory.shared_memory(host),
        memory.huge_pages(host),
        accelerator.device_users(host, gpus),
        accelerator.device_clocks(host, gpus),
        accelerator.device_memory(trial.memory_total, trial.memory_free),
        settings.threads(host),
        settings.debugging(host),
        settings.open_files(host),
        settings.processes(host),
        settings.locked_memory(host),
        settings.core_files(host),
        settings.disk(host, out),
        settings.surroundings(host),
        software.torch(software.torch_version()),
    ]
    present = [finding for finding in found if finding is not None]
    return tuple(sorted(present, key=lambda finding: STATES.index(finding.state)))
