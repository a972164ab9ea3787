"""Numbers and foreign text as readers see them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.estimates import Estimate
from assay.report.quantities import estimate_texts, number, percent, quantity, size
from assay.report.text import LIMIT, clean, line


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "s", "NA"),
        (1.24e9, "B/s", "1.24 GB/s"),
        (1e9, "B/s", "1.00 GB/s"),
        (0.0, "s", "0 s"),
        (4.2e-5, "s", "42.0 µs"),
        (14_420.0, "tokens/s/device", "14,420 tokens/s/device"),
        (2_360_832.0, "1", "2,360,832"),
        (4.168, "1", "4.17"),
        (math.nan, "s", "NaN s"),
        (math.inf, "1", "∞"),
        (3e22, "1", "3.00e+22"),
        (3e-9, "1", "3.00e-09"),
    ],
)
def test_quantity(value: float | None, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


def test_mfu_is_shown_in_percent() -> None:
    assert quantity(0.314, "1", "mfu") == "31.4 %"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (1.24e9, 1.21e9, 1.27e9, ("1.24 GB/s", "[1.21, 1.27]")),
        (1.002e9, 0.993e9, 1.01e9, ("1.00 GB/s", "[0.99, 1.01]")),  # one prefix for all three
        (1.24e9, 1.238e9, 1.243e9, ("1.240 GB/s", "[1.238, 1.243]")),  # narrow, yet not [1.24, 1.24]
        (1.24e9, 1.24e9, 1.24e9, ("1.24 GB/s", "[1.24, 1.24]")),
        (1.24e9, None, None, ("1.24 GB/s", "")),
        (math.nan, 1.0, 2.0, ("NaN B/s", "")),
    ],
)
def test_interval_shares_prefix_and_digits(
    value: float, low: float | None, high: float | None, shown: tuple[str, str]
) -> None:
    assert estimate_texts(Estimate(value, low, high, 9, ""), "B/s") == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(65536, "64 KiB"), (1000, "1,000 B"), (0, "0 B"), (1 << 30, "1 GiB"), (1536 << 10, "1,536 KiB")],
)
def test_size(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(("share", "shown"), [(None, "NA"), (0.734, "73.4 %"), (0.0178, "1.78 %"), (0, "0.0 %")])
def test_percent(share: float | None, shown: str) -> None:
    assert percent(share) == shown


@given(st.floats(), st.floats(), st.floats(), st.text(max_size=9))
def test_no_float_is_refused(value: float, low: float, high: float, unit: str) -> None:
    assert number(value)
    assert quantity(value, unit)
    assert size(value)
    assert percent(value)
    estimate_texts(Estimate(value, low, high, 1, ""), unit)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("bell\x07", "bell\\x07"),
        ("50%\r100%", "50%\\x0d100%"),
        ("a\r\nb", "a\nb"),
        ("\udc80", "\\udc80"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("naïve ‘quotes’ 漢字 🚀", "naïve ‘quotes’ 漢字 🚀"),
    ],
)
def test_foreign_text_is_made_harmless(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_a_flood_is_cut_and_counted() -> None:
    assert clean("x" * 1_000_000) == "x" * LIMIT + f" … ({1_000_000 - LIMIT:,} more characters)"
    assert line("a\n b\tc") == "a b c"


@given(st.text(st.characters(), max_size=200))
def test_any_text_can_be_written_as_utf8(text: str) -> None:
    clean(text).encode("utf-8")
