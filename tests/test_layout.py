"""How ranks lie on hosts, and Slurm's short forms of lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.layout import Layout, counts_per_node, expand_hosts, fold_hosts, lay_out


@given(st.integers(1, 5000), st.integers(1, 64), st.none() | st.integers(1, 50))
def test_hosts_are_filled_one_after_the_other_or_the_sentence_says_why_not(
    world: int, per_node: int, available: int | None
) -> None:
    too_many = available is not None and world > per_node * available
    if world > per_node and (world % per_node or too_many):
        with pytest.raises(BadInput, match=str(world)):
            lay_out(world, per_node, available)
        return
    layout = lay_out(world, per_node, available)
    assert layout.nodes * layout.per_node == layout.world == world
    assert layout.per_node <= per_node
    assert layout.nodes <= (available or world)
    assert [layout.node_of(rank) for rank in range(world)] == sorted(
        node for node in range(layout.nodes) for _ in range(layout.per_node)
    )


@given(st.lists(st.from_regex(r"[a-z-]{1,3}[0-9]{0,3}", fullmatch=True), min_size=1, max_size=12))
def test_folding_hosts_loses_none_and_keeps_their_order(hosts: list[str]) -> None:
    assert expand_hosts(fold_hosts(hosts)) == hosts


def test_ten_thousand_hosts_fit_into_a_word() -> None:
    assert fold_hosts([f"node{number:05d}" for number in range(10_000)]) == "node[00000-09999]"


@pytest.mark.parametrize(
    ("world", "per_node", "available", "said"),
    [
        (12, 8, None, "12 ranks do not fill hosts of 8 ranks evenly; give a multiple of 8, or another -n"),
        (32, 8, 2, "32 ranks, 8 on a host, need 4 hosts, but there are 2; ask for more hosts, or put more ranks on each with -n"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(world: int, per_node: int, available: int | None, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        lay_out(world, per_node, available)
    assert str(caught.value) == said


def test_few_ranks_take_one_host() -> None:
    assert lay_out(3, 8, 1) == Layout(3, 3)
    assert lay_out(8, 8, 1) == Layout(8, 8)
    assert lay_out(16, 8, 4) == Layout(16, 8)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("n[08-10,12],x1", ["n08", "n09", "n10", "n12", "x1"]),
        ("a[1-2]b[1-2]", ["a1b1", "a1b2", "a2b1", "a2b2"]),
        ("r[1-2]n7-ib,login", ["r1n7-ib", "r2n7-ib", "login"]),
        ("gpu-a.b[9-11]", ["gpu-a.b9", "gpu-a.b10", "gpu-a.b11"]),
    ],
)
def test_node_lists_of_slurm_are_told_in_full(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 4))
def test_a_node_list_keeps_order_and_leading_zeros(numbers: list[int], width: int) -> None:
    texts = [str(number).zfill(width) for number in numbers]
    assert expand_hosts(f"n[{','.join(texts)}]") == [f"n{text}" for text in texts]


@given(st.text(alphabet="nx[]-, 01²٣\n", max_size=9) | st.text(max_size=9))
def test_any_text_is_a_node_list_or_one_sentence(text: str) -> None:
    try:
        said = "".join(expand_hosts(text))
    except BadInput as error:
        said = str(error).partition(": ")[2]
    assert said or not text.strip(",")


@pytest.mark.parametrize("bad", ["n[1-", "n[1", "n[]", "n[3-1]", "n[a-b]", "n[1,]", "n[²]"])
def test_a_torn_node_list_is_refused(bad: str) -> None:
    with pytest.raises(BadInput, match="is no range"):
        expand_hosts(bad)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), max_size=6))
def test_counts_by_node_are_told_in_full(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert counts_per_node(text) == [count for count, times in runs for _ in range(times)]


@given(st.text(alphabet="0123x(), ", max_size=12) | st.text(max_size=12))
def test_what_is_no_count_is_left_out(text: str) -> None:
    assert all(count >= 0 for count in counts_per_node(text))
