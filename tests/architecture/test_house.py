"""The house of design: who may import whom, what starts light, and what must not exist."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "atoll"

# From the top of the house to the bottom; rooms on one line do not import each other.
FLOORS = [
    {"cli"},
    {"experiment"},
    {"spec", "runtime", "tracking"},
    {"learner", "aggregation", "evaluation"},
    {"privacy", "models", "data", "plan"},
    {"timeline"},
    {"population"},
    {"messages", "schedules"},
    {"errors", "kernel_cache", "rng"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The package's own __init__ is the public interface; it names experiment lazily.
ONLY_IN = {
    "yaml": {"spec"},
    "opacus": {"privacy"},
    "mlflow": {"tracking"},
    "ray": {"runtime"},
    "numba": {"kernel_cache", "learner", "timeline"},
    "optuna": {"experiment"},
}
NEITHER_TORCH_NOR_RAY = {"cli", "spec", "plan", "timeline", "population", "data"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward_only(path: Path) -> None:
    room = room_of(path)
    if room == "__main__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "atoll" or len(parts) < 2 or parts[1] not in FLOOR_OF or parts[1] == room:
            continue
        assert FLOOR_OF[parts[1]] > FLOOR_OF[room], f"{room} imports {name}: imports run downward only"
        assert parts[1] != "spec" or room in {"cli", "experiment"}, f"{room} imports the spec"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        library = name.split(".")[0]
        if library in ONLY_IN:
            assert room in ONLY_IN[library], f"{room} imports {library}"
        if room in NEITHER_TORCH_NOR_RAY or path.name == "shapes.py":
            assert library not in {"torch", "ray"}, f"{room} imports {library}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_outliers(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    # what numba compiles together stands in one file: its disk cache notices changes of no other
    most = 600 if path.name == "kernels.py" else 400
    assert len(lines) <= most, f"{path.name}: {len(lines)} non-blank lines; split it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.name}: {length} lines; split it"


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_public_names_exist(room: str) -> None:
    module = importlib.import_module(f"atoll.{room}")
    for name in module.__all__:
        assert hasattr(module, name), f"atoll.{room}.__all__ names {name}, which does not exist"


def test_platform_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    # From the checkout's root, Python still finds the standard library's module.
    code = "import platform; print(platform.python_version())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3.")


@pytest.mark.parametrize(
    "module",
    ["atoll", "atoll.cli", "atoll.spec", "atoll.plan", "atoll.data", "atoll.experiment", "atoll.experiment.listing"],
)
def test_light_start(module: str) -> None:
    code = (
        f"import sys, {module}; heavy = [m for m in ('torch', 'ray', 'mlflow', 'opacus', 'matplotlib', 'pandas') "
        "if m in sys.modules]; print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_global_randomness() -> None:
    for path in MODULES:
        text = path.read_text()
        for forbidden in ("np.random.seed", "torch.manual_seed(", "import random\n", "np.random.rand"):
            assert forbidden not in text, f"{path.relative_to(ROOT)}: {forbidden}"
