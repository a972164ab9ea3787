"""Text that others wrote (names, log lines, reasons), made safe to show: nothing hidden, nothing executed."""

import re

LIMIT = 1000

# CSI, OSC (with its terminator) and two-character escapes: what a terminal would swallow or obey.
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]")
# Controls, direction overrides, lone surrogates and what XML forbids.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def clean(value: object, limit: int = LIMIT) -> str:
    """`value` as harmless text: colour codes go, other controls become visible escapes, the far end of a flood is cut."""
    text = str(value)
    # Cut first: a log line of many megabytes must not be searched several times.
    excess = len(text) - limit
    if excess > 0:
        text = text[:limit]
    text = _ANSI.sub("", text.replace("\r\n", "\n"))
    text = _UNSAFE.sub(_escape, text)
    return f"{text} … ({excess:,} more characters)" if excess > 0 else text


def line(value: object, limit: int = LIMIT) -> str:
    """`clean` text on one line."""
    return " ".join(clean(value, limit).split())


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
