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
    summary = {
        "summary": [
            {"hostname": "h", "raylet": {"state": "ALIVE", "nodeId": "1", "isHeadNode": True}},
            {"hostname": "w", "raylet": {"state": "ALIVE", "nodeId": "2", "resourcesTotal": {"CPU": 3.0}}},
            {"hostname": "gone", "raylet": {"state": "DEAD", "nodeId": "3"}},
            {"hostname": "odd"},
        ]
    }
    rows = [{"node_id": "1", "resources_total": {"CPU": 2.0, "memory": "3 GiB"}, "labels": {"fl/pool": "cpu"}}]
    assert nodes_of(summary, {"result": {"result": rows}}) == [
        Node("h", True, {"CPU": 2.0}, {"fl/pool": "cpu"}),
        Node("w", False, {"CPU": 3.0}, {}),
    ]
    assert nodes_of({}, {}) == []
