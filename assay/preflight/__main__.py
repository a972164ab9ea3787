"""`python -m assay.preflight`: one process on each host; see command.py."""

import os
import sys

from assay.preflight.command import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that hangs in a network file system must not keep the process.
    os._exit(code)
