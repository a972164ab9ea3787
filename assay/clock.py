"""The one clock of the suite.

`time.monotonic` reads CLOCK_MONOTONIC, which all processes of a host share, so that the entries and exits of ranks on
one host can be compared with each other. A timed region synchronises the device on both sides itself, where the reader
sees it.
"""

import time

now = time.monotonic
"""Seconds on the monotonic clock."""
