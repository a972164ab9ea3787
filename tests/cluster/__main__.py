"""A cluster to play with: python -m tests.cluster start DIR, and what the start prints."""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.cluster.lab import Lab, load, start
from tests.cluster.slurm import HEAD, Shape

_USE = """\
{nodes} nodes are idle after {seconds:.1f} s. What now:
  {me} login {folder}                  a shell on the login node, in this folder: sinfo, sbatch, srun, mpirun, ssh node1
  {me} login {folder} sbatch --nodes=2 --gpus-per-node={gpus} --wrap 'srun hostname'
  {me} login {folder} squeue
  {me} power-off {folder} 2            and power-on; pull and plug are its network cable
  {me} limit {folder} 2 100mbit        what node 2 sends and receives
  {me} stop {folder}
Jobs run as root and see this machine's files; {logs} tells what the daemons did."""


def main() -> None:
    """Do one thing to a cluster, and say in a sentence what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    helps = {
        "start": "start a cluster whose files lie in DIR",
        "login": "run a command on the login node; a shell without one",
        "power-off": "node N loses its power",
        "power-on": "node N starts again",
        "pull": "pull node N's network cable",
        "plug": "plug it in again",
        "limit": "let node N send and receive no faster than RATE",
        "stop": "end every process of the cluster; its logs stay",
    }
    for verb, text in helps.items():
        one = verbs.add_parser(verb, help=text, description=text)
        one.add_argument("folder", metavar="DIR", type=Path)
        if verb == "start":
            one.add_argument("--nodes", type=int, default=4)
            one.add_argument("--gpus", type=int, default=8, help="of each node; they are devices that do nothing")
            one.add_argument("--cpus", type=int, default=64, help="that each node claims to have")
            one.add_argument("--rate", help="what each node sends and receives, as tc writes it: 100mbit")
            one.add_argument("--unshared", type=Path, metavar="PATH", help="a path of which each host sees its own")
        elif verb == "login":
            one.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
        elif verb != "stop":
            one.add_argument("number", metavar="N", type=int)
        if verb == "limit":
            one.add_argument("rate", metavar="RATE", help="as tc writes it: 100mbit")
    told = parser.parse_args()
    try:
        if told.verb == "start":
            _start(told)
        else:
            _act(load(told.folder), told)
    except RuntimeError as error:
        sys.exit(f"cluster: {error}")


def _start(told: argparse.Namespace) -> None:
    began = time.monotonic()
    shape = Shape(told.nodes, told.gpus, told.cpus, min_job_age=600)
    start(told.folder, shape, unshared=told.unshared, rate=told.rate)
    took = time.monotonic() - began
    me = f"{os.path.relpath(sys.executable)} -m tests.cluster"
    logs = told.folder / "log"
    print(_USE.format(nodes=told.nodes, gpus=told.gpus, seconds=took, me=me, folder=told.folder, logs=logs))


def _act(lab: Lab, told: argparse.Namespace) -> None:
    if told.verb == "login":
        argv = lab.inside(HEAD, told.command or [os.environ.get("SHELL", "/bin/sh")], Path.cwd())
        os.execvpe(argv[0], argv, {**os.environ, "SLURM_CONF": str(lab.slurm_conf)})
    elif told.verb == "stop":
        lab.stop()
    elif told.verb == "limit":
        lab.limit(told.number, told.rate)
    else:
        actions = {"power-off": lab.power_off, "power-on": lab.power_on, "pull": lab.pull, "plug": lab.plug}
        actions[told.verb](told.number)


if __name__ == "__main__":
    main()
