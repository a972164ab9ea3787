"""The local launcher: torchrun on this host. `render` is pure: `assay plan` prints what is started."""

from collections.abc import Callable, Mapping, Sequence

from assay import machine
from assay.launchers.attended import Attended
from assay.launchers.ports import check_port
from assay.launchers.protocol import Command, Job


class LocalLauncher:
    """See protocol.Launcher."""

    hosts: tuple[str, ...] = ()
    address = "127.0.0.1"

    def render(self, job: Job, port: int | None, env: Mapping[str, str]) -> Command:
        """torchrun for all ranks on this host; without a port it finds one itself."""
        world = job.layout.world
        meeting = ["--standalone"] if port is None else ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        argv = [machine.python(), "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(world)]
        # Behind "--" torchrun leaves the script's own options alone.
        return Command([*argv, "--", *job.program], rank_environment(job, env, machine.usable_cores()))

    def on_each_host(
        self, nodes: int, argv: Sequence[str], given: Mapping[str, str], env: Mapping[str, str]
    ) -> Command:
        """`argv` itself."""
        return Command(list(argv), dict(given))

    def meeting_port(self, asked: int | None) -> int | None:
        """The one that was asked for, if it is free."""
        check_port(asked)
        return asked

    def submit(self, command: Command, job: Job, keep_fd: int | None, on_line: Callable[[str], None]) -> Attended:
        """Start it under a lifeline."""
        return Attended(command, job.folder, keep_fd, on_line)

    def collect(self, job: Job) -> Sequence[str]:
        """Nothing is elsewhere."""
        return ()


def rank_environment(job: Job, env: Mapping[str, str], cores: int) -> dict[str, str]:
    """The variables that every launcher gives to ranks. cores: of a host, to be shared by its ranks."""
    threads = env.get("OMP_NUM_THREADS") or str(max(1, cores // job.layout.per_node))
    mark = {"ASSAY_RUN": "1"} if job.watched else {}
    return {"OMP_NUM_THREADS": threads, **mark, "PYTHONUNBUFFERED": "1"}
