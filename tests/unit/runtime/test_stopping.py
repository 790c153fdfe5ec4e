"""Ctrl-C and SIGTERM, with real signals; and patience with what dies again and again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from atoll.errors import InfrastructureError
from atoll.runtime.stopping import Patience, StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def send(number: int) -> None:
    """To this very thread, so that it is there when the call returns."""
    signal.raise_signal(number)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_one_stops(first: int, second: int, capsys) -> None:
    with StopSignal() as stop:
        assert not stop.is_set
        send(first)
        assert stop.is_set
        assert "once more to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(second)


def test_a_signal_of_another_process_counts_too() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_afterwards_handlers_are_what_they_were(error: type[BaseException] | None) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def inside() -> None:
        with StopSignal():
            assert all(signal.getsignal(number) is not before[number] for number in SIGNALS)
            if error is not None:
                raise error

    if error is None:
        inside()
    else:
        with pytest.raises(error):
            inside()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_one_inside_another_gives_back_to_that_one() -> None:
    with StopSignal() as outer:
        with StopSignal() as inner:
            send(signal.SIGINT)
        assert (inner.is_set, outer.is_set) == (True, False)
        send(signal.SIGINT)
        assert outer.is_set


def test_handlers_are_put_back_once() -> None:
    """What others install afterwards stays, however often it is left."""
    stop = StopSignal()
    with stop:
        pass
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_touches_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    found = []

    def work() -> None:
        with StopSignal() as stop:
            found.append(([signal.getsignal(number) for number in SIGNALS], stop.is_set))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_patience_ends_after_so_many_losses_in_a_row() -> None:
    patience = Patience("the aggregator process", 3)
    for _ in range(3):
        patience.lost(5, "no answer")
    with pytest.raises(
        InfrastructureError, match=r"the aggregator process was lost 4 times .* no answer\..*resume RUN"
    ):
        patience.lost(5, "no answer")


def test_progress_renews_patience() -> None:
    patience = Patience("a client pool", 2)
    for progress in range(50):
        patience.lost(progress, "died")
        patience.lost(progress, "died")
    with pytest.raises(InfrastructureError):
        patience.lost(49, "died")


def test_falling_back_is_no_progress() -> None:
    """After a roll-back the newest version is an older one for a while."""
    patience = Patience("a client pool", 2)
    patience.lost(10, "died")
    patience.lost(7, "died")
    with pytest.raises(InfrastructureError):
        patience.lost(9, "died")


def test_no_loss_at_all_may_be_borne() -> None:
    with pytest.raises(InfrastructureError, match="lost 1 times"):
        Patience("it", 0).lost(0, ValueError("once"))
