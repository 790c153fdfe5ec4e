"""Sides of a benchmark: each a process of its own, in an environment of its own, that prints one JSON line.

Environments of peers are made on first use under .bench/ in the checkout. A side that fails, or takes too long, is
told and left out; the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CACHE", "ROOT", "Side", "end_with_sides", "environment", "quiet_env", "run_side"]

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench"
#: what a peer's environment holds; the releases of performance records are comparable only with themselves
PACKAGES = {
    "pfl": ("pfl[pytorch]==0.6.0", "torch==2.13.0"),
    "flower": ("flwr[simulation]==1.41.0", "torch==2.13.0"),
    "fedjax": ("fedjax==0.0.17", "jax==0.10.2"),
    "flsim": ("flsim==0.1.0", "torch==2.13.0"),
}
#: installed without what they ask for, but with this: FLSim pins packages that no longer install
ALONE = {
    "flsim": ("hydra-core==1.3.2", "omegaconf==2.3.0", "numpy", "opacus", "pandas", "pytest", "scikit-learn", "tqdm")
}
#: seconds between two looks at the memory of a side
LOOK_S = 2.0


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: in tables.
        group: atoll, kernel, loop or peer.
        environment: a peer's; None: this process's own.
        command: what the environment's Python runs.
        processes: several: under torchrun.
    """

    name: str
    group: str
    command: Sequence[str]
    environment: str | None = None
    processes: int = 1

    def arguments(self, seconds: float) -> list[str]:
        """The command line."""
        programs = Path(sys.executable).parent if self.environment is None else environment(self.environment)
        timing = ["--seconds", str(seconds), "--began", str(time.monotonic())]
        if self.processes == 1:
            return [str(programs / "python"), *self.command, *timing]
        many = [str(programs / "torchrun"), "--standalone", "--nproc_per_node", str(self.processes)]
        return [*many, *self.command, *timing]


def quiet_env() -> dict[str, str]:
    """One thread a process, and BLAS's own choice of kernels; the same for every side."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return env | {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


def environment(name: str) -> Path:
    """The folder of a peer's programs; made first where it is not there.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    place, packages = CACHE / name, PACKAGES[name]
    stamp = place / "bench-stamp"
    asked = " ".join((*packages, *ALONE.get(name, ())))
    if not stamp.exists() or stamp.read_text() != asked:
        print(f"Setting up {place.relative_to(ROOT)}: {' '.join(packages)} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-qq"]
        if name in ALONE:
            subprocess.run([*pip, *packages[1:], *ALONE[name]], check=True)
            subprocess.run([*pip, "--no-deps", packages[0]], check=True)
        else:
            subprocess.run([*pip, *packages], check=True)
        stamp.write_text(asked)
    return place / "bin"


def end_with_sides() -> None:
    """SIGTERM ends the benchmark as Ctrl-C does, with the side that runs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def run_side(
    side: Side, seconds: float, *, log: Path, timeout_s: float = 600.0, looks: bool = False
) -> dict[str, float]:
    """Runs a side once; what its JSON line says, and `peak_mb` where `looks` is set; {} where it failed: see `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        command = side.arguments(seconds)
    except subprocess.CalledProcessError as error:
        log.write_text(f"its environment cannot be made: {error}\n")
        return {}
    with log.open("w") as errors:
        errors.write(" ".join(command) + "\n")
        errors.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=quiet_env(), stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        peak: list[float] = []
        watch = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        if looks:
            watch.start()
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
        except BaseException:
            # Ctrl-C, SIGTERM: nothing of a side outlives the benchmark
            os.killpg(process.pid, signal.SIGKILL)
            raise
        errors.write(printed)
    found = [line for line in printed.splitlines() if line.startswith('{"')]
    if not found:
        # a side that printed has measured all, however it ended
        return {}
    values: dict[str, float] = json.loads(found[-1])
    return values | ({"peak_mb": max(peak)} if peak else {})


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    while process.poll() is None:
        peak.append(_proportional_mb(process.pid))
        time.sleep(LOOK_S)


def _proportional_mb(root: int) -> float:
    """PSS of a process and all below it: memory that several share is counted once."""
    below: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name, in brackets, may hold blanks
            parent = int(place.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
        below.setdefault(parent, []).append(int(place.parent.name))
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        todo += below.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
