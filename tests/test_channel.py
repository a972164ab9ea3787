"""What ranks say to each other: the same over torch and MPI, and never all to all."""

import ast
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

import assay.world
from assay.channel import Alone, first_said, joined, packed, spread_out
from assay.device import HostDevice
from assay.placement import Placement
from assay.world import World, join
from tests.conftest import ROOT, free_port, mpirun
from tests.ranks_channel import LONG, spoken

T = TypeVar("T")


def joined_world(rank: int, size: int, port: int) -> World:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    return join(Placement(rank, size, rank, size, "tests"), "gloo", HostDevice(), 60.0)


def in_world(size: int, work: Callable[[int, int, int], T]) -> list[T]:
    """What `work(rank, size, port)` returns in each of `size` processes that run together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["assay.world", "torch.distributed"])
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    port = free_port()
    ranks = [
        context.Process(target=one_rank, args=(told, work, rank, size, port)) for rank, (_, told) in enumerate(pipes)
    ]
    try:
        for process in ranks:
            process.start()
        assert all(heard.poll(60) for heard, _ in pipes), "ranks hang"
        return [heard.recv() for heard, _ in pipes]
    finally:
        for process in ranks:
            process.kill()
            process.join()
            process.close()


def one_rank(told: Connection, work: Callable[[int, int, int], T], rank: int, size: int, port: int) -> None:
    try:
        told.send(work(rank, size, port))
    except Exception as error:
        told.send(repr(error))
    finally:
        os._exit(0)  # as our ranks end: a thread of gloo may outlive the interpreter


def expected(rank: int, size: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "collect": [[one, LONG[:one]] for one in range(size)] if rank == 0 else None,
        "gather": [f"n{one // 2}" for one in range(size)],
        "broadcast": f"{LONG}{size - 1}"[-3:],
        "largest": [[size - 1, 0], [-math.inf, 5.0]],
        "total": [size, size * (size - 1) / 2],
        "nothing": [],
        "agree": 40,
        "said": "rank 1" if size > 1 else None,
        "silent": None,
    }


def spoken_over_gloo(rank: int, size: int, port: int) -> dict[str, Any]:
    return spoken(joined_world(rank, size, port).channel)


@pytest.mark.parametrize("size", [2, 5])
def test_every_rank_hears_the_same_over_torch(size: int) -> None:
    assert in_world(size, spoken_over_gloo) == [expected(rank, size) for rank in range(size)]


def test_every_rank_hears_the_same_over_mpi() -> None:
    done = mpirun(3, "tests/ranks_channel.py")
    assert done.returncode == 0, done.stderr
    heard = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda one: int(one["rank"]))
    assert heard == [expected(rank, 3) for rank in range(3)]


def test_a_rank_alone_hears_itself() -> None:
    assert spoken(Alone()) == expected(0, 1)


def heard_bytes(rank: int, size: int, port: int) -> int:
    """Bytes that this rank receives in one call of each kind."""
    channel = joined_world(rank, size, port).channel
    heard = 0
    receive, broadcast = dist.recv, dist.broadcast

    def counted_receive(tensor: Any, *args: Any) -> Any:
        nonlocal heard
        heard += tensor.nbytes
        return receive(tensor, *args)

    def counted_broadcast(tensor: Any, *args: Any) -> Any:
        nonlocal heard
        heard += tensor.nbytes
        return broadcast(tensor, *args)

    def refused(*args: object, **more: object) -> None:
        raise AssertionError("not counted")

    for name in dir(dist):
        if name.startswith(("all_", "gather", "scatter", "reduce")) and callable(getattr(dist, name)):
            setattr(dist, name, refused)
    dist.recv, dist.broadcast = counted_receive, counted_broadcast  # type: ignore[assignment]
    channel.collect({"of": rank})
    channel.gather("one host")
    channel.broadcast("to all")
    channel.largest(np.zeros(4))
    channel.total(np.zeros(4))
    first_said(channel, "")
    return heard


def test_what_a_rank_hears_does_not_grow_with_the_world() -> None:
    few, many = in_world(3, heard_bytes), in_world(9, heard_bytes)
    assert few[1] == many[1] > 0, "a leaf of the tree"
    assert many[0] < 2 * few[0] + 9 * len(packed([(packed({"of": 8}), 1)])), "rank 0 hears each rank's item once"
    assert sum(many) < 5 * sum(few), "three times the ranks; all to all it would be nine times"


def connections(rank: int, size: int, port: int) -> int:
    """How many other ranks this one is connected to after a call of each kind."""
    assay.world.MOST_MESHED = size - 1
    channel = joined_world(rank, size, port).channel
    spoken(channel)
    channel.barrier()
    connected = [one for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
    links = [one for one in connected if port not in (one.laddr.port, one.raddr.port)]
    channel.barrier()
    return len(links)


def test_a_large_world_does_not_connect_all_with_all() -> None:
    size = 8
    assert sum(in_world(size, connections)) < size * (size - 1)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.data())
def test_runs_joined_in_any_tree_are_the_items(items: list[str], data: st.DataObject) -> None:
    parts = [[(packed(item), 1)] for item in items]
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [joined(parts[at], parts[at + 1])]
    assert spread_out(parts[0]) == items
    assert len(parts[0]) == sum(1 for _ in groupby(items)), "as many runs as there are hosts, not ranks"


# Who may have everyone know everyone's: only what ranks of a host share.
ALLOWED = {
    "assay/world.py: gather",  # World.gather itself
    "assay/world.py: _world",  # hosts and clocks
    "assay/hang_watch.py: _shared_folder",  # a folder a host
}
ALL_TO_ALL = {"all_gather_object", "allgather", "alltoall", "gather_object", "scatter_object_list"}


def everyone_to_everyone(source: str) -> Iterator[tuple[str, str]]:
    """Function and call, of each by which every rank would get every rank's Python object."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        of = call.func.value
        of_whom = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
        if call.func.attr in ALL_TO_ALL or (call.func.attr == "gather" and of_whom in ("world", "channel")):
            inside = [one for one in functions if one.lineno <= call.lineno <= (one.end_lineno or 0)]
            yield inside[-1].name if inside else "", call.func.attr


def test_nobody_sends_objects_all_to_all() -> None:
    paths = [path for folder in ("assay", "comms", "specs", "workloads") for path in (ROOT / folder).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {function}"
        for path in paths
        for function, _ in everyone_to_everyone(path.read_text())
    }
    assert found == ALLOWED


def test_all_to_all_is_recognised() -> None:
    source = "def keep(here):\n    dist.all_gather_object(a, b)\n    here.world.gather(1)\n    transport.gather(t)\n"
    assert list(everyone_to_everyone(source)) == [("keep", "all_gather_object"), ("keep", "gather")]
