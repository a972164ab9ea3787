"""Sizes as people write them, and SI figures as people read them. Inside the suite only base units exist."""

import math
import re

_BINARY = {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_BINARY |= {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # as nccl-tests reads them
_DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_EXPECTED = "a number of bytes such as 4096, 64KiB, 1.5MiB or 2GB"


def parse_size(text: str | int) -> int:
    """Bytes meant by `text`: `4096`, `64KiB`, `8M` (= MiB, as in nccl-tests), `2GB` (10⁹).

    Raises ValueError, with what was expected, for anything else and for a fraction of a byte.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"expected {_SIZE_EXPECTED}, got {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"expected {_SIZE_EXPECTED}, got {text}")
        return text
    match = _SIZE.fullmatch(text.strip())
    factor = _factor(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"expected {_SIZE_EXPECTED}, got {text!r}")
    # Integers stay integers: a float would lose bytes above 2^53.
    size = int(match[1]) * factor if match[1].isdigit() else float(match[1]) * factor
    if size != int(size):
        raise ValueError(f"expected {_SIZE_EXPECTED}, got {text!r}, which is a fraction of a byte")
    return int(size)


def _factor(suffix: str) -> int | None:
    return _BINARY.get(suffix, _DECIMAL.get(suffix))


def format_size(count: int) -> str:
    """`count` bytes in the largest binary unit that divides it: `65536` → `64KiB`, `1000` → `1000B`."""
    for suffix, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % factor == 0:
            return f"{count // factor}{suffix}"
    return f"{count}B"


_PREFIXES = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")]
_UNPREFIXED = {"", "1", "%", "step", "steps"}


def si_scale(value: float, unit: str) -> tuple[float, str]:
    """The divisor and the unit with which a value of this size is shown: `2e9, "B/s"` → `1e9, "GB/s"`.

    Pure numbers (unit "1"), counts and token rates keep their unit.
    """
    size = abs(value)
    if unit in _UNPREFIXED or unit.startswith("tokens") or size == 0 or not math.isfinite(size):
        return 1.0, "" if unit == "1" else unit
    factor, prefix = next(((f, p) for f, p in _PREFIXES if size >= f * 0.9995), (1e-9, "n"))
    return factor, prefix + unit


def significant_places(value: float, digits: int = 3) -> int:
    """Decimals with which `value` shows so many significant digits: `1.234` → 2, `1234` → 0."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def format_si(value: float | None, unit: str, digits: int = 3) -> str:
    """`value` (base unit `unit`) for a reader: `1.24e9, "B/s"` → `1.24 GB/s`; None → `NA`."""
    if value is None:
        return "NA"
    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    factor, shown = si_scale(value, unit)
    scaled = value / factor
    return f"{scaled:,.{significant_places(scaled, digits)}f} {shown}".strip()


def format_duration(seconds: float) -> str:
    """A span for people: `0.42` → `0.4 s`, `75` → `1 min 15 s`, `7300` → `2 h 01 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
