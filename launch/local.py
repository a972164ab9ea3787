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
        by_hand.become(told, LocalLauncher())
    except AssayError as error:
        by_hand.fail(error)


if __name__ == "__main__":
    main()
