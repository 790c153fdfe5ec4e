"""Seats on a device that pools share: how many there are, and that nobody gets one too many; a pretended device."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from atoll.runtime import seats as module
from atoll.runtime.seats import Seats, seats_here


class Device:
    """Pools of one process stand for processes; counts those that are on it."""

    def __init__(self, folder: Path, block_bytes: int, total_bytes: int = 1000, sharing: int = 4) -> None:
        self.folder, self.block_bytes, self.total_bytes, self.sharing = folder, block_bytes, total_bytes, sharing
        self.on_it = self.most = self.released = 0
        self._lock = threading.Lock()

    def pool(self) -> Seats:
        return Seats("abacus", self.total_bytes, self.sharing, lambda: self.block_bytes, self._release, self.folder)

    def _release(self) -> None:
        self.released += 1

    def train(self, pool: Seats) -> None:
        with pool.taken():
            with self._lock:
                self.on_it += 1
                self.most = max(self.most, self.on_it)
            time.sleep(0.02)
            with self._lock:
                self.on_it -= 1


@pytest.mark.parametrize(("block_bytes", "number"), [(100, 4), (212, 4), (213, 3), (400, 2), (800, 1), (5000, 1)])
def test_as_many_as_fit(tmp_path: Path, block_bytes: int, number: int) -> None:
    device = Device(tmp_path, block_bytes)
    pool = device.pool()
    assert pool.number == 1, "nothing is known yet"
    device.train(pool)
    assert pool.number == number


@pytest.mark.parametrize(("block_bytes", "most"), [(400, 2), (5000, 1)])
def test_never_more_than_fit(tmp_path: Path, block_bytes: int, most: int) -> None:
    device = Device(tmp_path, block_bytes)
    pools = [device.pool() for _ in range(4)]
    for pool in pools:
        device.train(pool)
    assert device.most == 1, "the first blocks of all come one after another"
    threads = [threading.Thread(target=lambda p=pool: [device.train(p) for _ in range(4)]) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.most == most
    assert device.released == 4 + 16, "what a pool holds beside its block is given back while it is tight"


def test_where_all_fit_nobody_waits_and_nothing_is_given_back(tmp_path: Path) -> None:
    device = Device(tmp_path, 10)
    pool = device.pool()
    device.train(pool)
    with pool.taken(), device.pool()._seat(1):
        pass
    assert device.released == 1


def test_a_larger_block_than_any_before_leaves_fewer_seats(tmp_path: Path) -> None:
    device = Device(tmp_path, 250)
    pool = device.pool()
    device.train(pool)
    assert pool.number == 3
    device.block_bytes = 500
    device.train(pool)
    assert pool.number == 1


def test_a_process_that_dies_leaves_its_seat(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom atoll.runtime.seats import Seats\n"
        "seats = Seats('abacus', 1000, 2, lambda: 900, lambda: None, pathlib.Path(sys.argv[1]))\n"
        "with seats.taken():\n    print('seated', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "seated\n"
        device = Device(tmp_path, 900, sharing=2)
        done = threading.Thread(target=device.train, args=(device.pool(),))
        done.start()
        done.join(0.2)
        assert done.is_alive(), "the seat is taken"
        other.kill()
        done.join(10)
    assert device.most == 1


def test_a_process_without_a_gpu_takes_no_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HERE", {})
    with seats_here():
        pass
    assert list(module._HERE.values()) == [None]
