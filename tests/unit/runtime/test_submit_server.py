"""What of the job server's answers is understood without one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.jobs import Node, _Log, nodes_of


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 7)), max_size=6))
def test_a_log_read_again_and_again_is_passed_on_once(text: str, readings: list[tuple[int, int]]) -> None:
    """Each reading begins anew, comes in pieces of any size, and breaks off anywhere; the last one is whole."""
    passed: list[str] = []
    log = _Log(passed.append)
    for length, piece in [*readings, (len(text), 3)]:
        log.begin()
        for start in range(0, min(length, len(text)), piece):
            log.add(text[start : min(start + piece, length, len(text))])
    assert "".join(passed) == text


def test_nodes_that_are_alive() -> None:
    rows = [
        {"state": "ALIVE", "node_ip": "10.0.0.1", "is_head_node": True, "labels": {"fl/pool": "cpu"},
         "resources_total": {"CPU": 2.0, "memory": "3 GiB"}},
        {"state": "DEAD", "node_ip": "10.0.0.2"},
        {"state": "ALIVE"},
    ]  # fmt: skip
    assert nodes_of({"data": {"result": {"result": rows}}}) == [
        Node("10.0.0.1", True, {"CPU": 2.0}, {"fl/pool": "cpu"}),
        Node("", False, {}, {}),
    ]
    assert nodes_of({}) == nodes_of({"data": {"result": None}}) == []
