"""Runs a sweep as a Ray job: `ray job submit -- python jobs/sweep.py configs/NAME.yaml KEY=A,B,C --trials N …`.

Takes what `atoll sweep` takes and prints one JSON object as its last line. As with jobs/train.py a job's next attempt
(NAME-a2 after NAME-a1) goes on where the last one stopped; give `tracking.uri` a server and `runtime.store` a place
that every node reaches. Trials run on the cluster's client pools, `--at-once` of them at the same time.
"""

from __future__ import annotations

import os
import sys

from atoll import cli
from atoll.experiment.attempts import run_key

if __name__ == "__main__":
    key = run_key(os.environ)
    sys.argv[1:1] = ["sweep", "--json", *(() if key is None else ("--key", key))]
    cli.main()
