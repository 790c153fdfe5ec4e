"""Runs configs/quickstart.yaml and writes the table of its comparison into README.md."""

from __future__ import annotations

from pathlib import Path

import atoll
from atoll.tracking import insert_between, to_markdown


def main() -> None:
    found = atoll.run_comparison("configs/quickstart.yaml")
    readme = Path("README.md")
    text = insert_between(readme.read_text(encoding="utf-8"), "quickstart", to_markdown(found.comparison))
    readme.write_text(text, encoding="utf-8")
    wall_s = sum(run.wall_s for run in found.runs)
    busy = sum(run.busy_s for run in found.runs) / sum(run.workers * run.wall_s for run in found.runs)
    print(f"{len(found.runs)} runs, {wall_s:.0f} s of training, workers outside client work {100 * (1 - busy):.1f} %")


if __name__ == "__main__":
    main()
