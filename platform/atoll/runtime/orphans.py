"""What a killed driver leaves running of its embedded Ray: two agents that hold ports and slow the next Ray's start."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

__all__ = ["end_orphans"]


def end_orphans(folders: Iterable[Path]) -> list[int]:
    """Ends Ray's processes that have files open in `folders`, temporary folders of Rays whose driver is gone.

    Returns:
        Their process ids. Nothing, where there is no /proc.
    """
    places = tuple(f"{folder}/" for folder in folders)
    ended = []
    for process in Path("/proc").glob("[0-9]*") if places else ():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if not _is_of_ray(process) or not any(
                os.readlink(f).startswith(places) for f in (process / "fd").iterdir()
            ):
                continue
            os.kill(int(process.name), signal.SIGKILL)
            ended.append(int(process.name))
    return ended


def _is_of_ray(process: Path) -> bool:
    command = (process / "cmdline").read_bytes()
    return command.startswith(b"ray::") or any(name in command for name in (b"/raylet/raylet", b"/gcs/gcs_server"))
