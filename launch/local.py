"""Start a script on several ranks of this host, by torchrun.

    python launch/local.py -n 8 comms/bench.py -- --ops all_reduce
    python launch/local.py -n 2 my_script.py -- --its-own arguments

The script's output, signals and exit code are this command's own. For records that can be scored: assay run SUITE.
"""

from assay.errors import AssayError
from assay.launchers import by_hand
from assay.launchers.local import LocalLauncher


def main() -> None:
    """Become torchrun."""
    told = by_hand.parser(str(__doc__), nodes=False).parse_args()
    try:
        launcher = LocalLauncher()
        command = launcher.render(by_hand.job(told), launcher.meeting_port(told.port), by_hand.surroundings())
    except AssayError as error:
        by_hand.fail(error)
    if told.dry_run:
        by_hand.show(command)
    else:
        by_hand.replace_process(command)


if __name__ == "__main__":
    main()
