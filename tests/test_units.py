import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.units import format_duration, format_si, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64KiB", 65536), ("8M", 8 << 20), ("2GB", 2 * 10**9), ("1.5 MiB", 3 << 19), ("1b", 1), (7, 7)],
)
def test_sizes_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5B", "1e3", "12 parsecs", "٣", True, 3.5])
def test_other_sizes_say_what_was_expected(text: object) -> None:
    with pytest.raises(ValueError, match="expected a number of bytes such as"):
        parse_size(text)  # type: ignore[arg-type] # the command line and YAML hand over anything


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_figures_carry_their_unit() -> None:
    assert format_si(1.24e9, "B/s") == "1.24 GB/s"
    assert format_si(0.000_85, "s") == "850 µs"
    assert format_si(None, "s") == "NA"
    assert format_si(2521.4, "tokens/s/device") == "2,521 tokens/s/device"
    assert format_duration(75) == "1 min 15 s"
