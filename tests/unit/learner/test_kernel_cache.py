"""Compiled kernels are found again wherever the package lies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import atoll
from atoll.kernel_cache import ByContent

_FUNCTION = """
import numba
from atoll import kernel_cache
kernel_cache.use()

@numba.njit(cache=True)
def double(x):
    return 2 * x

double(21)
print(sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()))
"""


def test_what_one_copy_compiled_the_other_finds(tmp_path: Path) -> None:
    said = []
    for number, text in enumerate([_FUNCTION, _FUNCTION, _FUNCTION.replace("2 *", "3 *")]):
        package = tmp_path / f"copy{number}" / "atoll"
        package.mkdir(parents=True)
        for name in ("__init__.py", "kernel_cache.py"):
            shutil.copy(Path(atoll.__file__).parent / name, package / name)
        (package / "some_kernels.py").write_text(text)
        places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "atoll.some_kernels"],
            env={"PYTHONPATH": str(package.parent), **places},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stdout.split())
    assert said == [["0", "1"], ["1", "0"], ["0", "1"]], "(hits, misses): another content is compiled anew"


def test_other_peoples_functions_are_not_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("")
    assert ByContent.from_function(test_other_peoples_functions_are_not_ours, str(mine)) is None
