"""Records that lie on other hosts come here through real tar processes; a folder of its own stands for each host."""

import io
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from assay.launchers import gathering
from assay.launchers.gathering import gather
from assay.launchers.protocol import Job
from assay.layout import Layout

NODES, PER_NODE = 4, 2
HOSTS = [f"n{number}" for number in range(1, NODES + 1)]


class Site:
    """Hosts without a shared file system: what the job's folder holds on each, and who was asked."""

    def __init__(self, folder: Path) -> None:
        self.job = Job("a", ("true",), Layout(NODES * PER_NODE, PER_NODE), folder / "job")
        self.job.folder.mkdir()
        self.folders = {host: folder / host for host in HOSTS}
        self.asked: list[str] = []
        self.instead: dict[str, list[str]] = {}
        for node, host in enumerate(HOSTS):
            self.folders[host].mkdir()
            for rank in range(node * PER_NODE, (node + 1) * PER_NODE):
                self.file(host, f"rank-{rank:05d}.jsonl").write_text(f"records of rank {rank}\n" * 2000)

    def file(self, host: str, name: str) -> Path:
        return self.folders[host] / name

    def here(self, name: str) -> Path:
        return self.job.folder / name

    def on_host(self, host: str, argv: Sequence[str]) -> list[str]:
        self.asked.append(host)
        assert list(argv[:3]) == ["tar", "-C", str(self.job.folder.resolve())]
        there = ["tar", "-C", str(self.folders[host]), *argv[3:]]
        return [word.replace("TAR", shlex.join(there)) for word in self.instead.get(host, [])] or there

    def gather(self) -> list[str]:
        return gather(self.job, HOSTS, self.on_host)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_is_missing_is_fetched_from_the_hosts_that_have_it(site: Site) -> None:
    for rank in (0, 1, 4):
        site.here(f"rank-{rank:05d}.jsonl").write_text("here already")
    site.file("n2", "sensors-00002.jsonl").write_text("watts")
    assert site.gather() == []
    assert site.asked == ["n2", "n3", "n4"], "the first host's records are here, and it is not asked"
    for rank in range(NODES * PER_NODE):
        text = site.here(f"rank-{rank:05d}.jsonl").read_text()
        assert text == ("here already" if rank in (0, 1, 4) else f"records of rank {rank}\n" * 2000)
    assert site.here("sensors-00002.jsonl").read_text() == "watts"


def test_where_the_folder_is_shared_nobody_is_asked(site: Site) -> None:
    for rank in range(NODES * PER_NODE):
        site.here(f"rank-{rank:05d}.jsonl").touch()
    assert site.gather() == []
    assert site.asked == []


def test_a_host_that_fails_is_named_with_its_reason_and_costs_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "HOST_SECONDS", 0.5)
    site.instead = {
        "n1": ["sh", "-c", "echo 'first words' >&2; echo 'ssh: connect to host n1: no route to host' >&2; exit 255"],
        "n2": ["no-such-command-anywhere"],
        "n3": ["sleep", "60"],
    }
    told = site.gather()
    reasons = [
        "ssh: connect to host n1: no route to host",
        "[Errno 2] No such file or directory",
        "sent nothing for 0.5 s",
    ]
    for host, sentence, reason in zip(HOSTS, told, reasons, strict=False):
        assert sentence.startswith(f"{host} could not deliver its records ({reason}")
        assert sentence.endswith(f"; they may still lie there in {site.job.folder}")
    assert len(told) == 3
    assert sorted(path.name for path in site.job.folder.iterdir()) == ["rank-00006.jsonl", "rank-00007.jsonl"]


def test_a_host_that_dies_while_it_delivers_leaves_nothing_torn(site: Site) -> None:
    site.instead["n2"] = ["sh", "-c", "TAR | head -c 30000; kill -9 $$"]
    (told,) = site.gather()
    assert told.startswith("n2 could not deliver its records (unexpected end of data)")
    whole = "records of rank 2\n" * 2000, "records of rank 3\n" * 2000
    for name, text in zip(("rank-00002.jsonl", "rank-00003.jsonl"), whole, strict=True):
        assert not site.here(name).exists() or site.here(name).read_text() == text
    assert len(list(site.job.folder.glob("rank-*"))) in (6, 7)
    assert list(site.job.folder.glob(".*")) == [], "nor does half a file stay"


def test_an_exit_code_is_a_reason_where_nothing_was_said(site: Site) -> None:
    site.instead["n4"] = ["sh", "-c", "TAR; exit 3"]
    (told,) = site.gather()
    assert told.startswith("n4 could not deliver its records (exit code 3)")
    assert site.here("rank-00007.jsonl").exists(), "what came is kept"


def test_a_host_with_many_complaints_does_not_stop_the_gathering(site: Site) -> None:
    site.instead["n2"] = ["sh", "-c", "yes a complaint | head -c 300000 >&2; exec TAR"]
    assert site.gather() == []


def test_only_plain_files_of_the_folder_itself_are_written(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("untouched")
    (tmp_path / "victim").write_text("untouched")
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("../outside.txt", str(outside), "./../outside.txt", "a/rank-00002.jsonl", "..", "./"):
            add(file, tarfile.TarInfo(name), b"evil")
        link = tarfile.TarInfo("rank-00003.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        file.addfile(link)
        add(file, tarfile.TarInfo("rank-00003.jsonl"), b"of rank 3")
        hard = tarfile.TarInfo("hard.jsonl")
        hard.type, hard.linkname = tarfile.LNKTYPE, "../victim"
        file.addfile(hard)
        device = tarfile.TarInfo("pipe")
        device.type = tarfile.FIFOTYPE
        file.addfile(device)
        setuid = tarfile.TarInfo("rank-00002.jsonl")
        setuid.mode = 0o6777
        add(file, setuid, b"of rank 2")
    site.instead["n2"] = ["cat", str(archive)]
    for node in (0, 2, 3):
        for rank in range(node * PER_NODE, (node + 1) * PER_NODE):
            site.here(f"rank-{rank:05d}.jsonl").touch()
    before = sorted(tmp_path.iterdir())
    assert site.gather() == []
    assert sorted(tmp_path.iterdir()) == before
    assert outside.read_text() == (tmp_path / "victim").read_text() == "untouched"
    assert sorted(path.name for path in site.job.folder.iterdir()) == [f"rank-{rank:05d}.jsonl" for rank in range(8)]
    assert site.here("rank-00003.jsonl").read_text() == "of rank 3"
    assert not site.here("rank-00003.jsonl").is_symlink()
    assert not site.here("rank-00002.jsonl").stat().st_mode & 0o7111


def add(archive: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
