"""The recorder: what it calls the last evaluation, and what reaches the outbox."""

from __future__ import annotations

from types import SimpleNamespace

from atoll.runtime.recorder import Recorder


class Kept:
    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float, int]] = []

    def commit(self, rows) -> None:
        self.rows += rows


def test_the_last_evaluation_is_of_the_newest_version_whatever_comes_back_last() -> None:
    outbox = Kept()
    coordinator = SimpleNamespace(ledger=SimpleNamespace(client_updates=4), version=20, take_rows=list)
    recorder = Recorder(outbox, coordinator)  # type: ignore[arg-type]
    for version, value in ((0, 0.5), (20, 0.7), (10, 0.6)):
        recorder.record(version, {"eval/auc": value})
    recorder.flush(is_forced=True)
    assert recorder.last_evaluation == {"eval/auc": 0.7}
    assert [row[:3] for row in outbox.rows] == [("eval/auc", 0, 0.5), ("eval/auc", 20, 0.7), ("eval/auc", 10, 0.6)]
