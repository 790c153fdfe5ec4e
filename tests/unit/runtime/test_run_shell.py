"""A run inside the coordinator's process whose journal cannot be written: it ends alone, whatever state it is in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.errors import FencedError, InfrastructureError
from atoll.runtime.losses import RollBack
from atoll.runtime.run_shell import RunShell


class FullDisk:
    """A journal on a disk without room."""

    epoch = 1

    def claim(self) -> None:
        raise InfrastructureError("no space left")

    def snapshots(self) -> list[Any]:
        return []


class Publishing:
    """One batch is under way, and its end cannot be written."""

    is_under_way = True

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def take(self) -> object:
        return object()

    def succeeded(self) -> None:
        raise self.error

    def failed(self, error: BaseException) -> None:
        raise self.error


def running(error: BaseException | None = None) -> RunShell:
    parts: Any = SimpleNamespace()
    shell = RunShell(0, parts)
    known: Any = shell
    known._state, known._epoch, known._journal = "running", 1, FullDisk()
    known._pools = SimpleNamespace(close=lambda tenant: None)
    known._tracker = SimpleNamespace(send=lambda tenant, batch, then: then(None))
    known._attempt = SimpleNamespace(publishing=Publishing(error or InfrastructureError("no space left")))
    return shell


def test_weights_that_are_lost_while_the_journal_cannot_be_claimed_end_the_run() -> None:
    shell = running()
    shell.failed(RollBack("weights that a client pool asked for were lost"))
    assert shell.is_over
    assert isinstance(shell.outcome, InfrastructureError)
    shell.turn()


def test_what_the_tracker_took_or_lost_and_the_journal_cannot_note_ends_this_run_only() -> None:
    taken, lost = running(), running()
    taken._publish()
    lost.tracker_lost(OSError("gone"))
    assert isinstance(taken.outcome, InfrastructureError)
    assert isinstance(lost.outcome, InfrastructureError)


def test_a_fence_passes() -> None:
    with pytest.raises(FencedError):
        running(FencedError("another coordinator"))._publish()
