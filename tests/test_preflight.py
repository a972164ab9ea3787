"""The pre-flight: judging by itself, and real processes on hosts of their own, with real faults."""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.preflight.attendance import names_of
from assay.preflight.check import Check, Verdict, some
from assay.preflight.clocks import offset_of
from assay.preflight.command import read
from assay.preflight.devices import count, visible
from assay.preflight.equality import code, settings, software, split
from assay.preflight.facts import (
    Arrival,
    Code,
    Devices,
    Exchange,
    Folder,
    Knock,
    Network,
    Report,
    Seat,
    Wish,
    report_of,
)
from assay.preflight.first import listening_addresses
from assay.preflight.judge import Wanted, judge
from assay.preflight.meeting import Gathered
from assay.preflight.places import clocks, devices, disk, memory
from assay.preflight.reach import EVERY_PAIR, neighbours
from assay.preflight.screen import plain
from assay.preflight.start import argv
from assay.preflight.surroundings import means, seats
from assay.preflight.wire import Link, Refused

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 # of tests
VERSIONS = {"python": "3.11.2", "torch": "2.7.1", "numpy": "2.1.0"}
CLEAN = Code("1.0", "/assay", "a" * 40, "b" * 64, None)


def report(index: int, **more: Any) -> Report:
    """What a host without faults tells."""
    facts: dict[str, Any] = {
        "software": VERSIONS,
        "code": CLEAN,
        "devices": Devices(8, "/dev/nvidia*"),
        "folder": Folder("/runs", 1 << 40, None),
        "memory": Folder("/dev/shm", 1 << 36, None),  # noqa: S108 # a name only
        "shared": True if index else None,
        "network": Network((), None, ("lo", "eth0"), f"10.0.0.{index + 1}"),
        "seats": (Seat("Slurm", index, 4),),
        "exchanges": ((1.0, 1.1, 1.1, 1.2),) if index else (),
    }
    return Report(index, **{**facts, **more})


def of(*reports: Report) -> dict[str, Report]:
    return {f"node{item.index}": item for item in reports}


def heard(reports: Sequence[Report], **more: Any) -> Gathered:
    hosts = tuple(f"node{item.index}" for item in reports)
    arrivals = tuple(Arrival(n, host, f"clock{n}", f"10.0.0.{n + 1}", 1000 + n) for n, host in enumerate(hosts))
    return replace(Gathered(hosts, arrivals, {item.index: item for item in reports}), **more)


def only(checks: Sequence[Check], state: str) -> Check:
    """The one check of that state."""
    (found,) = [check for check in checks if check.state == state]
    return found


# What should be equal


@given(st.integers(3, 40), st.data())
def test_the_odd_one_out_is_named_with_both_versions(count: int, data: st.DataObject) -> None:
    odd = data.draw(st.integers(0, count - 1))
    reports = [report(n, software={**VERSIONS, "torch": "2.6.0"} if n == odd else VERSIONS) for n in range(count)]
    check = only(software(of(*reports)), "failed")
    assert check.hosts == (f"node{odd}",)
    assert f"torch 2.6.0 on node{odd}, 2.7.1 on the other {count - 1}" in check.found
    assert check.fix.endswith("pip install torch==2.7.1")


@given(st.dictionaries(st.integers(0, 30).map("node{}".format), st.sampled_from("abc"), min_size=1))
def test_a_split_names_everybody_once_and_says_when_nobody_is_right(values: dict[str, str]) -> None:
    parts = split(values)
    assert sorted(host for _, hosts in parts.groups for host in hosts) == sorted(values)
    counts = sorted((list(values.values()).count(value) for value in set(values.values())), reverse=True)
    assert parts.tie == (len(counts) > 1 and counts[0] == counts[1])
    if parts.tie:
        assert set(parts.odd) == set(values)
    else:
        most = max(values.values(), key=list(values.values()).count)
        assert set(parts.odd) == {host for host, value in values.items() if value != most}


def test_a_tie_of_versions_blames_nobody() -> None:
    check = only(software(of(report(0), report(1, software={**VERSIONS, "torch": None}))), "failed")
    assert check.found == "torch 2.7.1 on node0, absent on node1 (no majority)"
    assert set(check.hosts) == {"node0", "node1"}


def test_another_virtual_environment_is_one_finding() -> None:
    other = {"python": "3.10.1", "torch": "2.6.0", "numpy": "1.26.0"}
    check = only(software(of(report(0), report(1), report(2, software=other))), "failed")
    assert all(f"{name} {version} on node2" in check.found for name, version in other.items())
    assert "numpy==2.1.0 torch==2.7.1" in check.fix


@pytest.mark.parametrize(
    ("odd", "state", "words"),
    [
        (replace(CLEAN, revision="c" * 40, sources="d" * 64), "failed", "revision cccccccccc, sources dddddddd on node1"),
        (replace(CLEAN, sources="d" * 64, changes="e" * 64), "failed", "with uncommitted changes, sources dddddddd on node1"),
        (replace(CLEAN, changes="e" * 64), "failed", "the uncommitted changes differ"),
        (replace(CLEAN, sources="d" * 64), "failed", "the sources differ"),
        (replace(CLEAN, revision=None), "warning", "but the sources are equal"),
    ],
)  # fmt: skip
def test_other_code_is_named(odd: Code, state: str, words: str) -> None:
    check = only(code(of(report(0), report(1, code=odd), report(2))), state)
    assert check.hosts == ("node1",)
    assert words in check.found
    assert "node1" in check.fix


def test_what_a_host_could_not_tell_is_unknown_with_the_reason() -> None:
    silent = report(1, software=None, code=None, reasons={"software": "no answer within 5 s", "code": "broken"})
    assert only(software(of(report(0), silent)), "unknown").found == "node1: no answer within 5 s"
    assert only(code(of(report(0), silent)), "unknown").found == "node1: broken"


def test_settings_that_differ_are_a_warning() -> None:
    values = [{"NCCL_ALGO": "Ring"}, {"NCCL_ALGO": "Ring"}, {}]
    check = only(settings(of(*(report(n, settings=value) for n, value in enumerate(values)))), "warning")
    assert check.found == "NCCL_ALGO absent on node2, Ring on the other 2"


# Clocks


@given(
    st.floats(-1e5, 1e5),
    st.lists(st.tuples(*[st.floats(0, 2)] * 3), min_size=1, max_size=8),
)
def test_the_true_offset_is_within_the_error(true: float, delays: list[tuple[float, float, float]]) -> None:
    exchanges, first = [], 1000.0  # the first host's clock
    for out, inside, back in delays:
        heard_at, answered = first + out, first + out + inside
        exchanges.append((first + true, heard_at, answered, answered + back + true))
        first = answered + back + 1
    found = offset_of(exchanges)
    assert abs(found.seconds - true) <= found.error + 1e-9
    assert found.error <= min((out + back) / 2 for out, _, back in delays) + 1e-9


def exchange(offset: float, error: float = 0.001) -> tuple[Exchange, ...]:
    """One that tells this offset with this error (s)."""
    return ((offset - error, 0.0, 0.0, offset + error),)


@pytest.mark.parametrize(
    ("offsets", "bound", "state", "hosts"),
    [
        ((0.01, -0.02, 0.0), 0.1, "ok", ()),
        ((0.0, 5.0, 0.0), 0.1, "failed", ("node2",)),
        ((5.0, 5.01, 5.02), 0.1, "failed", ("node0",)),  # the first host's own clock is the wrong one
        ((5.0,), 0.1, "failed", ("node0", "node1")),  # of two, nobody can tell
        ((0.0, 0.0, 0.0), 0.0001, "warning", ("node1", "node2", "node3")),  # not known so closely
    ],
)
def test_a_clock_that_is_off_is_named(
    offsets: tuple[float, ...], bound: float, state: str, hosts: tuple[str, ...]
) -> None:
    others = (report(n + 1, exchanges=exchange(offset)) for n, offset in enumerate(offsets))
    (check,) = clocks(of(report(0), *others), "node0", bound)
    assert (check.state, check.hosts) == (state, hosts)


# Devices, folders


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, None), ("all", None), ("", 0), ("NoDevFiles", 0), ("0,1,2", 3), ("0,1,-1,2", 2), ("-1", 0), ("GPU-1a,GPU-2b", 2),
        ("0.0,0.1,1", 3), ("0, 1", 2), ("0,0", 1), ("MIG-GPU-1/0/1", 1),
    ],
)  # fmt: skip
def test_variables_that_hide_devices(value: str | None, number: int | None) -> None:
    assert visible(value) == number


def test_devices_are_counted_by_what_is_there(tmp_path: Path) -> None:
    def counted(env: Mapping[str, str], *files: str) -> Devices:
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        for file in files:
            (root / "dev" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "dev" / file).touch()
        return count(env, root, lambda: ["0000:01:00.0 0x10de:0x2330 no driver version"])

    cards = ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "dri/renderD128")
    assert counted({}, *cards) == Devices(4, "/dev/nvidia*")
    assert counted({"CUDA_VISIBLE_DEVICES": "0,2"}, *cards) == Devices(2, "CUDA_VISIBLE_DEVICES")
    lost = counted({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, *cards)
    assert lost.count == 4
    assert lost.doubt == "CUDA_VISIBLE_DEVICES names 8, but /dev/nvidia* are 4"
    assert counted({}, "accel/accel0", "accel/accel1") == Devices(2, "/dev/accel/*")
    assert (
        counted({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "0"}, "dri/renderD128", "dri/renderD129").count
        == 1
    )
    assert "no driver's device file" in counted({"ZE_AFFINITY_MASK": "0,1"}).doubt
    nothing = counted({})
    assert nothing.count is None
    assert "PCI shows 0000:01:00.0" in nothing.source


@pytest.mark.parametrize(
    ("counts", "wanted", "state", "hosts"),
    [
        ((8, 8, 8), 8, "ok", ()),
        ((8, 7, 8), 8, "failed", ("node1",)),
        ((8, 7, 8), None, "warning", ("node1",)),
        ((8, 16, 8), 8, "warning", ("node1",)),
        ((8, None, 8), 8, "failed", ("node1",)),  # its driver is gone
        ((None, None, None), 8, "unknown", ("node0", "node1", "node2")),
        ((None, None, None), None, "ok", ()),
        ((0, 0, 0), 8, "failed", ("node0", "node1", "node2")),
    ],
)
def test_hosts_without_the_devices_are_named(
    counts: tuple[int | None, ...], wanted: int | None, state: str, hosts: tuple[str, ...]
) -> None:
    reports = (report(n, devices=Devices(number, "why")) for n, number in enumerate(counts))
    (check,) = devices(of(*reports), wanted)
    assert (check.state, check.hosts) == (state, hosts)
    assert bool(check.fix) == (state != "ok")


def test_folders_that_are_full_closed_or_silent_are_named() -> None:
    full, closed = Folder("/runs", 1 << 20, None), Folder("/runs", 1 << 40, "read-only file system")
    hung = report(3, folder=None, reasons={"folder": "no answer within 5 s"})
    checks = disk(of(report(0), report(1, folder=full), report(2, folder=closed), hung), 1 << 30, None)
    failed = {check.hosts: check.found for check in checks if check.state == "failed"}
    assert failed == {
        ("node1",): "less than 1.07 GB free: node1 1.05 MB in /runs",
        ("node2",): "node2: /runs cannot be written: read-only file system",
        ("node3",): "node3: no answer within 5 s",
    }


@pytest.mark.parametrize(
    ("shared", "state", "words"),
    [
        ((True, True), "ok", "one for all hosts"),
        ((False, False), "ok", "gathered at the end"),
        ((True, False), "warning", "not with node2"),
    ],
)
def test_whether_the_run_folder_is_shared(shared: tuple[bool, ...], state: str, words: str) -> None:
    others = (report(n + 1, shared=value) for n, value in enumerate(shared))
    (check,) = [item for item in disk(of(report(0), *others), 1, None) if item.name == "sharing"]
    assert check.state == state
    assert words in check.found


def test_little_shared_memory_is_a_warning_and_none_a_failure() -> None:
    small = {n: Folder("/dev/shm", free, None) for n, free in enumerate((64 << 20, 1 << 10))}  # noqa: S108
    checks = memory(of(report(0, memory=small[0]), report(1, memory=small[1])), 1 << 30)
    assert {check.hosts: check.state for check in checks} == {("node0",): "warning", ("node1",): "failed"}


# Network


@given(st.integers(1, 300))
def test_every_direction_is_tried_from_both_ends_and_no_host_tries_many(count: int) -> None:
    asked = [neighbours(place, count) for place in range(count)]
    for place, others in enumerate(asked):
        assert place not in others
        assert len(others) == len(set(others))
        assert all(place in asked[other] for other in others)
        if count <= EVERY_PAIR:
            assert len(others) == count - 1
        else:
            assert len(others) <= 2 * (count - 1).bit_length()
            assert (place + 1) % count in others


def knocked(count: int, dead: set[tuple[int, int]]) -> list[Report]:
    return [
        report(n, knocks=tuple(Knock(m, "EINVAL: no" if (n, m) in dead else None) for m in neighbours(n, count)))
        for n in range(count)
    ]


def network(count: int, dead: set[tuple[int, int]]) -> Check:
    (check,) = [item for item in judge(heard(knocked(count, dead)), Wanted(), "node0:1") if item.name == "network"]
    return check


def test_a_cut_pair_is_named_in_both_directions() -> None:
    check = network(4, {(1, 2), (2, 1)})
    assert check.state == "failed"
    assert "node1 → node2 (EINVAL: no) and node2 → node1 (EINVAL: no)" in check.found
    assert check.hosts == ("node1", "node2")


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(4, 100), st.data())
def test_a_host_in_all_failures_is_named(count: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, count - 1))
    dead = {(cut, other) for other in neighbours(cut, count)} | {(other, cut) for other in neighbours(cut, count)}
    check = network(count, dead)
    assert check.hosts == (f"node{cut}",)
    assert check.found.startswith(f"node{cut} is in all {len(dead)} failures")


def test_above_64_hosts_the_share_of_directions_is_told() -> None:
    check = network(100, set())
    assert check.state == "ok"
    assert check.found == "1,400 of 9,900 directions tried, all answered"


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("", "eth0", ("eth0",)),
        ("", "eth", ()),
        ("GLOO_SOCKET_IFNAME", "eth1,eth0", ("eth1", "eth0")),
        ("NCCL_SOCKET_IFNAME", "eth", ("eth0", "eth1")),
        ("NCCL_SOCKET_IFNAME", "=eth", ()),
        ("NCCL_SOCKET_IFNAME", "=eth0,ib0", ("eth0", "ib0")),
        ("NCCL_SOCKET_IFNAME", "^eth", ("ib0",)),
        ("NCCL_SOCKET_IFNAME", "^=eth0", ("eth1", "ib0")),
    ],
)
def test_which_interfaces_a_variable_means(variable: str, value: str, found: tuple[str, ...]) -> None:
    assert means(variable, value, ["lo", "eth0", "eth1", "ib0"]) == found


def test_interfaces_that_are_absent_or_contradict_each_other() -> None:
    absent = Network((Wish("--interface", "ib0", ()),), None, ("lo", "eth0"), "10.0.0.2")
    apart = Network(
        (Wish("GLOO_SOCKET_IFNAME", "eth0", ("eth0",)), Wish("NCCL_SOCKET_IFNAME", "ib", ("ib0",))),
        "eth0", ("lo", "eth0", "ib0"), "10.0.0.3",
    )  # fmt: skip
    reports = [report(0), report(1, network=absent), report(2, network=apart)]
    checks = [item for item in judge(heard(reports), Wanted(), "node0:1") if item.name == "interface"]
    assert only(checks, "failed").found == "node1: --interface=ib0 names no interface there (there are: lo, eth0)"
    assert only(checks, "warning").hosts == ("node2",)


INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "ib0": ["10.1.0.1"]}


@pytest.mark.parametrize(
    ("host", "resolved", "interface", "found"),
    [
        ("node1", ["10.0.0.1"], None, ["10.0.0.1"]),
        ("node1", ["10.9.9.9"], None, []),
        ("127.0.0.1", ["127.0.0.1"], None, ["127.0.0.1"]),
        ("node1", ["127.0.1.1"], None, ["127.0.1.1", "10.0.0.1", "10.1.0.1"]),
        ("node1", ["127.0.1.1"], "ib0", ["127.0.1.1", "10.1.0.1"]),
    ],
)
def test_it_listens_at_its_own_addresses_only(
    host: str, resolved: list[str], interface: str | None, found: list[str]
) -> None:
    assert listening_addresses(host, resolved, INTERFACES, interface) == found


# Who is who


@given(st.permutations(range(6)), st.booleans())
def test_hosts_are_known_by_what_they_call_themselves(order: list[int], full: bool) -> None:
    hosts = [f"node{n}" for n in range(6)]
    arrivals = [
        Arrival(index, f"node{n}.cluster.example" if full else f"node{n}", "", "", 0) for index, n in enumerate(order)
    ]
    assert names_of(hosts, arrivals) == {index: f"node{n}" for index, n in enumerate(order)}


def test_hosts_that_call_themselves_otherwise_are_known_by_index() -> None:
    arrivals = [Arrival(0, "alias0", "", "", 0), Arrival(2, "alias2", "", "", 0)]
    assert names_of(["10.0.0.1", "10.0.0.2", "10.0.0.3"], arrivals) == {0: "10.0.0.1", 2: "10.0.0.3"}


def hosts_checks(gathered: Gathered) -> list[Check]:
    return [item for item in judge(gathered, Wanted(), "node0:1") if item.name == "hosts"]


def test_two_processes_on_one_host_are_told_and_the_host_without_one_is_missing() -> None:
    both = (Arrival(0, "node0", "same", "", 0), Arrival(1, "node0", "same", "", 0))
    checks = hosts_checks(heard([report(0), report(1)], arrivals=both))
    assert {check.hosts for check in checks if check.state == "failed"} == {("node1",), ("node0",)}
    told = next(check for check in checks if check.hosts == ("node0",))
    assert told.found == "2 processes run on node0: indices 0 and 1"
    assert "--ntasks-per-node=1" in told.fix


def test_a_host_under_a_taken_index_has_answered_all_the_same() -> None:
    reports = [report(0), report(1), report(2)]
    gathered = heard(reports)
    double = replace(gathered.arrivals[2], index=1)
    two = replace(gathered, arrivals=gathered.arrivals[:2], reports={0: reports[0], 1: reports[1]}, doubles=(double,))
    check = only(hosts_checks(two), "failed")
    assert check.found == "two processes came as index 1: on node1 and on node2"


@pytest.mark.parametrize(
    ("env", "launchers"),
    [
        ({}, []),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, [Seat("Slurm", 1, 4)]),
        (
            {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0"},
            [Seat("Open MPI", 2, 4), Seat("Slurm", 0, 3)],
        ),
    ],
)  # fmt: skip
def test_every_launcher_is_seen_the_believed_one_first(env: dict[str, str], launchers: list[Seat]) -> None:
    assert list(seats(env)) == launchers


def test_launchers_that_disagree_are_a_warning_but_for_the_daemons_of_mpirun() -> None:
    apart = report(1, seats=(Seat("torchrun", 1, 4), Seat("Open MPI", 0, 2)))
    daemons = report(0, seats=(Seat("Open MPI", 0, 4), Seat("Slurm", 0, 3)))
    (check,) = [item for item in judge(heard([daemons, apart]), Wanted(), "node0:1") if item.name == "launcher"]
    assert check.state == "warning"
    assert check.hosts == ("node1",)
    assert "RANK and WORLD_SIZE: 1 of 4 and Open MPI: 0 of 2" in check.found


# Words


def test_names_of_many_hosts_stay_short() -> None:
    assert [some([]), some(["a"]), some(["a", "b"]), some(["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert some([f"n{n}" for n in range(100)]) == "n0, n1, n2, n3, n4, n5, n6 and 93 others"


def test_the_table_holds_every_fix_and_nothing_that_a_terminal_obeys() -> None:
    checks = judge(
        heard([report(0), report(1, software={**VERSIONS, "torch": "\x1b[2J2.6"}), report(2)]), Wanted(), "x:1"
    )
    text = plain(Verdict(checks, ("node0", "node1", "node2"), {}, 1.0, ""))
    assert "\x1b" not in text
    assert "→ install the same on node1: python -m pip install torch==2.7.1" in text
    assert text.endswith("Not ready: mend first: software (3 hosts, 1.0 s).")


def test_a_report_survives_its_way() -> None:
    sent = report(1, knocks=(Knock(2, "no"),), reasons={"code": "x"})
    assert report_of(json.loads(json.dumps(asdict(sent)))) == sent


def test_the_rendered_command_is_understood() -> None:
    words = argv(
        "node1:29600", ["node[1-3]", "x"], folder=Path("/runs/a b"), devices=8, free=5, clock_bound=0.5, interface="ib0",
        wait=3, json=Path("x.json"), torch=True, python="python3",
    )  # fmt: skip
    assert words[:3] == ["python3", "-m", "assay.preflight"]
    env = {"RANK": "1", "WORLD_SIZE": "4", "ASSAY_PREFLIGHT_TOKEN": TOKEN}
    command = read(words[3:], env)
    setting = command.setting
    assert command.wanted == Wanted(8, 5, 0.5)
    assert (setting.index, setting.hosts, setting.port) == (1, ("node1", "node2", "node3", "x"), 29600)
    assert (setting.folder, setting.interface, setting.wait, setting.torch) == (Path("/runs/a b"), "ib0", 3, True)
    assert TOKEN not in setting.env.values()
    assert TOKEN not in " ".join(words)


@pytest.mark.parametrize(
    ("words", "env", "sentence"),
    [
        ("--meet a:1 --hosts a,b", {"ASSAY_PREFLIGHT_TOKEN": ""}, "ASSAY_PREFLIGHT_TOKEN is not set"),
        ("--meet a:1 --hosts a,b", {"ASSAY_PREFLIGHT_TOKEN": "short"}, "ASSAY_PREFLIGHT_TOKEN is too short"),
        ("--meet a:1 --hosts a,b,c", {}, "--hosts names 3 hosts, but 2 processes were started (RANK and WORLD_SIZE: 0 of 2)"),
        ("--meet a:1 --hosts a,a", {}, "a is named twice"),
        ("--meet a --hosts a,b", {}, "--meet 'a': should be HOST:PORT"),
        ("--meet a:70000 --hosts a,b", {}, "--meet 'a:70000': should be HOST:PORT"),
        ("--meet a:1 --hosts a,b --free lots", {}, "argument --free: expected a number of bytes"),
        ("--meet a:1 --hosts a,b --wait 0", {}, "--wait 0.0: should be a number of seconds above 0"),
        ("--meet a:1 --hosts a,b --devices -1", {}, "--devices -1: should be a number of devices"),
        ("--meet a:1 --hosts a,b --json /nowhere/x.json", {}, "its folder is not there"),
        ("--hosts a,b", {}, "the following arguments are required: --meet"),
        (
            "--meet a:1 --hosts a,b",
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"},
            "Slurm started this process as SLURM_PROCID=1",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(words: str, env: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(words.split(), {"RANK": "0", "WORLD_SIZE": "2", "ASSAY_PREFLIGHT_TOKEN": TOKEN, **env})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# Messages


async def pair(tokens: tuple[str, str]) -> tuple[Link, Link, asyncio.Server]:
    """Two ends of one connection over loopback, greeted."""
    ready: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready.set_result(Link(reader, writer, tokens[1], served=True))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    near, far = Link(reader, writer, tokens[0], served=False), await ready
    await asyncio.gather(near.greet(), far.greet())
    return near, far, server


def test_messages_arrive_in_order_and_those_of_strangers_are_refused() -> None:
    async def talk() -> None:
        near, far, server = await pair((TOKEN, TOKEN))
        for number in range(3):
            await near.send({"number": number})
        assert [await far.receive() for _ in range(3)] == [{"number": number} for number in range(3)]
        await far.send({"back": "ü"})
        assert await near.receive() == {"back": "ü"}
        near.close()
        with pytest.raises(ConnectionError):
            await far.receive()
        far.close()
        server.close()
        near, far, server = await pair((TOKEN, TOKEN[::-1]))
        await near.send({"number": 1})
        with pytest.raises(Refused):
            await far.receive()
        near.close()
        far.close()
        server.close()

    asyncio.run(talk())


def test_what_was_recorded_cannot_be_said_again() -> None:
    class Recorder:
        """A writer that keeps what is written."""

        def __init__(self) -> None:
            self.kept: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.kept.append(data)

        async def drain(self) -> None:
            pass

    async def talk() -> None:
        said, reader = Recorder(), asyncio.StreamReader()
        reader.feed_data(bytes(16))
        link = Link(reader, said, TOKEN, served=False)  # type: ignore[arg-type] # all that a link asks of a writer
        await link.greet()
        await link.send({"over": True})
        again = asyncio.StreamReader()
        again.feed_data(b"".join(said.kept))
        victim = Link(again, Recorder(), TOKEN, served=True)  # type: ignore[arg-type] # its nonce is another
        await victim.greet()
        with pytest.raises(Refused):
            await victim.receive()

    asyncio.run(talk())
