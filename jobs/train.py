"""Runs one experiment as a Ray job: `ray job submit -- python jobs/train.py configs/NAME.yaml KEY=VALUE …`.

`atoll submit` does the same and more. A run, a comparison or an ensemble, as the file says. Connects to the Ray cluster
of the job (RAY_ADDRESS is set there); without one it starts an embedded Ray. Prints one JSON object as its last line.
Give `tracking.uri` a server that the cluster reaches: an SQLite file would stay on the node; and `runtime.store` a
place that every node reaches.

A job's next attempt goes on where the last one stopped: submit it as `--submission-id NAME-a2` after `NAME-a1`, or set
ATOLL_RUN_KEY to one name for all attempts.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from atoll import cli
from atoll.experiment.attempts import run_key


def main() -> NoReturn:
    """`atoll run` under the job's key; exit codes are the command line's."""
    key = run_key(os.environ)
    sys.argv[1:1] = ["run", "--json", *(() if key is None else ("--key", key))]
    cli.main()


if __name__ == "__main__":
    main()
