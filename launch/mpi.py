"""Start a script on several ranks by Open MPI's mpirun: on this host, on a hostfile's hosts, or in a Slurm job.

    python launch/mpi.py -n 4 comms/bench.py -- --transport mpi --ops all_reduce
    python launch/mpi.py -N 2 -n 8 --hostfile hosts.txt workloads/pretrain.py -- --engine ddp --global-batch 32

hosts.txt has one host a line (node1 slots=8). mpirun reaches hosts by ssh, and within a Slurm job through Slurm; what
else it should know goes into its own variables, such as OMPI_MCA_plm_rsh_agent or OMPI_MCA_btl_tcp_if_include.
"""

import os
from pathlib import Path

from assay.errors import AssayError, BadInput
from assay.launchers import by_hand
from assay.launchers.mpi import MpiLauncher, check_mpirun, own_first, read_hostfile
from assay.launchers.slurm import allocation


def main() -> None:
    """Become mpirun."""
    parser = by_hand.parser(str(__doc__), nodes=True)
    parser.add_argument("--hostfile", type=Path, default=None, help="the file that names the hosts, one a line")
    told = parser.parse_args()
    try:
        check_mpirun()
        given = allocation(os.environ)
        hosts = read_hostfile(told.hostfile) if told.hostfile else given.hosts if given else ()
        if told.nodes > max(1, len(hosts)):
            raise BadInput(f"-N {told.nodes}: only {max(1, len(hosts))} hosts are known; name them with --hostfile")
        by_hand.become(told, MpiLauncher(own_first(hosts), told.hostfile))
    except AssayError as error:
        by_hand.fail(error)


if __name__ == "__main__":
    main()
