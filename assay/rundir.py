"""The run folder: documents that are whole or absent, one owner at a time, attempts that are never overwritten.

runs/<run>/run.json                       resolved suite, code, versions, environment, machine
          /runner.lock                    who owns the folder
          /watcher.lock, jobs/            under Slurm: who watches the jobs; their files, ids and output
          /doctor.json                    whether the machine was fit to be measured
          /cases/<case>/case.json         resolved case
                       /attempt-<k>/      command.json, stdout.log, stderr.log, status.json, rank-*.jsonl
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from assay.errors import BadInput, RunFailed

SCHEMA = "assay-run/1"
RUNNER = "runner.lock"
WATCHER = "watcher.lock"  # who submits jobs and watches them; the runner is then inside the job
LEASE_SECONDS = 150.0  # how long a file server may keep the lock of a host that lost its power; NFS 4 says 90
ORPHAN_SECONDS = 20.0  # how long the ranks of a killed runner may take to be gone

IsGone = Callable[[Mapping[str, Any]], bool]
"""Whether an owner on another host, as its lock describes it, is known to have ended."""
State = Literal["passed", "failed", "timeout", "skipped"]


@dataclass(frozen=True)
class Status:
    """How an attempt ended. phase: launch, run, records, interrupted, or reused (nothing was launched). advice: what to do about it."""

    state: State
    phase: str
    exit_code: int | None
    seconds: float
    reason: str | None = None
    advice: str | None = None


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON so that `path` holds either all of it or what it held before. Raises RunFailed if the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A path or a variable may hold bytes that are no UTF-8; they are shown, not refused.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, ValueError):
            raise  # not the disk's fault: a document that is no strict JSON must never be written
        raise RunFailed(_refused(path, error)) from error


def _refused(path: Path, error: OSError) -> str:
    return f"{path}: {(error.strerror or str(error)).lower()}; make room or mend it and run again"


def read_document(path: Path) -> dict[str, Any]:
    """A JSON document. Raises BadInput, naming the file, if it is missing or no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}; is this a run folder of assay?") from error
    except ValueError as error:
        raise BadInput(f"{path}: is no valid JSON ({error}); restore it or start a new run") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: expected a JSON object; restore it or start a new run")
    return document


class CaseDir:
    """One case's folder and its attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def attempts(self) -> list[Path]:
        """Attempt folders, first to last."""
        numbered = []
        for path in self.path.glob("attempt-*"):
            match = re.fullmatch(r"attempt-(\d+)", path.name)
            if match and path.is_dir():
                numbered.append((int(match[1]), path))
        return [path for _, path in sorted(numbered)]

    def new_attempt(self) -> Path:
        """Make the next attempt folder."""
        attempts = self.attempts()
        number = int(attempts[-1].name.removeprefix("attempt-")) + 1 if attempts else 1
        path = self.path / f"attempt-{number}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunFailed(_refused(path, error)) from error
        return path

    def status(self, attempt: Path) -> Status | None:
        """The attempt's status; None while it runs, if its runner was killed, or if the file does not hold a status."""
        path = attempt / "status.json"
        if not path.exists():
            return None
        try:
            return Status(**read_document(path))
        except (BadInput, TypeError):
            return None

    def passed(self) -> Path | None:
        """The attempt that passed, if one did."""
        for attempt in self.attempts():
            status = self.status(attempt)
            if status is not None and status.state == "passed":
                return attempt
        return None

    def latest(self) -> tuple[Path, Status | None] | None:
        """The attempt that speaks for the case: the one that passed, else the last; None if it never started."""
        attempts = self.attempts()
        if not attempts:
            return None
        chosen = self.passed() or attempts[-1]
        return chosen, self.status(chosen)


class RunDir:
    """A run folder that exists. `create` makes one, `open` takes one up again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @classmethod
    def create(
        cls, path: Path, document: Mapping[str, Any], lock: str = RUNNER, *, is_gone: IsGone | None = None
    ) -> "RunDir":
        """Make the folder with its run.json, owned by `lock`. Raises BadInput if something is there already.

        is_gone: with it, what a runner that was killed before it wrote run.json has left is taken over; see `lock`.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if (
                is_gone is None
                or not path.is_dir()
                or any(one.suffix not in (".lock", ".tmp") for one in path.iterdir())
            ):
                raise BadInput(
                    f"{path}: exists already; resume it with --resume {path} or give another --out"
                ) from None
        except OSError as error:
            raise BadInput(f"{path}: cannot be made ({error.strerror}); give another --out") from error
        run = cls(path)
        run.lock(lock, is_gone)
        write_document(path / "run.json", {"schema": SCHEMA, **document})
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """A run folder to read or resume. Raises BadInput if it is none, or of another schema."""
        if not path.is_dir():
            raise BadInput(f"{path}: is no folder; give the run folder that `assay run` printed")
        document = read_document(path / "run.json")
        if document.get("schema") != SCHEMA:
            raise BadInput(
                f"{path}/run.json: key 'schema' is {document.get('schema')!r}, this assay reads {SCHEMA!r}; "
                "use the version of assay that wrote it"
            )
        return cls(path)

    def document(self) -> dict[str, Any]:
        """run.json. Raises BadInput, naming the key, if a part that readers rely on is not what it should be."""
        document = {"code": {}, "host": {}, **read_document(self.path / "run.json")}
        for key in ("suite", "code", "host"):
            if not isinstance(document.get(key), dict):
                raise BadInput(f"{self.path}/run.json: key {key!r} should be a mapping; restore the file or run anew")
        names = document.get("cases")
        if not isinstance(names, list) or not all(isinstance(name, str) and "/" not in name for name in names):
            raise BadInput(f"{self.path}/run.json: key 'cases' should be a list of names; restore the file or run anew")
        return document

    def case(self, name: str) -> CaseDir:
        """The folder of the case `name`, made when first written to."""
        return CaseDir(self.path / "cases" / name)

    def cases(self) -> Iterator[CaseDir]:
        """The cases that have left something, in the order of run.json."""
        for name in self.document()["cases"]:
            case = self.case(name)
            if case.path.is_dir():
                yield case

    def lock(self, name: str = RUNNER, is_gone: IsGone | None = None) -> None:
        """Become the folder's one runner (or watcher, by `name`). Raises BadInput, naming the owner, if another lives.

        is_gone: whether an owner on another host, which cannot be seen from here, is known to have ended.

        The file names the owner for people; the kernel's lock on it is what counts. The lock is inherited by the
        processes that end a dead runner's ranks, so it is free only when none of those can write any more.
        """
        path = self.path / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunFailed(_refused(path, error)) from error
        try:
            self._own(fd, path, _remembered(is_gone) if is_gone else lambda owner: False)
        except BaseException:
            os.close(fd)
            raise
        os.set_inheritable(fd, False)
        self._lock_fd = fd

    def _own(self, fd: int, path: Path, is_gone: IsGone) -> None:
        begun = time.monotonic()
        deadline = begun + ORPHAN_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = _owner(fd)
                lives = owner is None or _lives(owner, is_gone)
                if not lives and owner is not None and owner.get("host") != platform.node():
                    deadline = begun + LEASE_SECONDS
                if lives or time.monotonic() > deadline:
                    raise BadInput(
                        f"{self.path}: another runner owns this folder ({_describe(owner)}); "
                        "wait for it, or end it and run again"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise BadInput(
                    f"{path}: this file system has no locks ({why}); put the run folder on one that has"
                ) from error
        owner = _owner(fd)
        if owner is not None and owner.get("host") != platform.node() and not is_gone(owner):
            raise BadInput(
                f"{self.path}: a runner on another host owns this folder ({_describe(owner)}); "
                f"if it is gone, remove {path} and run again"
            )
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_self_description()).encode(), 0)
        except OSError as error:
            raise RunFailed(_refused(path, error)) from error

    @property
    def lock_fd(self) -> int | None:
        """The lock's descriptor, to be handed to processes that must end before another runner may start."""
        return self._lock_fd

    def unlock(self) -> None:
        """Give the folder up."""
        if self._lock_fd is not None:
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def checkups(self) -> list[dict[str, Any]]:
        """What the doctor found before the run, and before it was resumed; a file that holds no such thing is left out."""
        try:
            found = read_document(self.path / "doctor.json").get("checkups")
        except BadInput:
            return []
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def add_checkup(self, checkup: Mapping[str, Any]) -> None:
        """Keep one more. Raises RunFailed if the disk refuses."""
        write_document(self.path / "doctor.json", {"checkups": [*self.checkups(), dict(checkup)]})

    def write_status(self, attempt: Path, status: Status) -> None:
        """Close an attempt with its status."""
        write_document(attempt / "status.json", asdict(status))


def _remembered(is_gone: IsGone) -> IsGone:
    """The same, asked no more once it is known: the answer may cost a question to a scheduler that serves thousands."""
    known: list[Mapping[str, Any]] = []

    def asked(owner: Mapping[str, Any]) -> bool:
        if owner not in known and is_gone(owner):
            known.append(owner)
        return owner in known

    return asked


def _self_description() -> dict[str, Any]:
    me = psutil.Process()
    about = {"pid": me.pid, "start_time": me.create_time(), "host": platform.node()}
    # A job that is requeued comes back on another host under its old number: so it knows itself again.
    slurm = {"slurm_job": "SLURM_JOB_ID", "slurm_restarts": "SLURM_RESTART_COUNT"}
    return {**about, **{key: os.environ.get(name) for key, name in slurm.items()}}


def _owner(fd: int) -> dict[str, Any] | None:
    try:
        owner = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _lives(owner: Mapping[str, Any], is_gone: IsGone) -> bool:
    if owner.get("host") != platform.node():
        return not is_gone(owner)  # cannot be seen from here: never take over unless it is known
    try:
        process = psutil.Process(int(owner["pid"]))
        return (
            abs(process.create_time() - float(owner["start_time"])) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _describe(owner: Mapping[str, Any] | None) -> str:
    if not owner:
        return "owner unknown"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner.get("start_time", 0))))
    return f"pid {owner.get('pid')} on {owner.get('host')}, started {started}"
