"""Runs one experiment as a Ray job: `ray job submit -- python jobs/train.py configs/NAME.yaml KEY=VALUE …`.

Connects to the Ray cluster of the job (RAY_ADDRESS is set there); without one it starts an embedded Ray. Prints one
JSON object as its last line. Give `tracking.uri` a server that the cluster reaches: an SQLite file would stay on the
node; and `runtime.store` a place that every node reaches.

A job's next attempt goes on where the last one stopped: submit it as `--submission-id NAME-a2` after `NAME-a1`, or set
ATOLL_RUN_KEY to one name for all attempts.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import atoll
from atoll.errors import AtollError, Interrupted


def run_key() -> str | None:
    """What all attempts of a job share: its submission id without the number of the attempt."""
    if key := os.environ.get("ATOLL_RUN_KEY"):
        return key
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submission_id = job.get("metadata", {}).get("job_submission_id", "")
    match = re.fullmatch(r"(.+)-a\d+", submission_id)
    return match[1] if match else None


def main(begin: Callable[..., Any], story: str | None) -> int:
    """Calls `begin` as the job's arguments say; exit code as the command line's."""
    if len(sys.argv) < 2:
        print(story, file=sys.stderr)
        return 2
    try:
        found = begin(sys.argv[1], *sys.argv[2:], key=run_key())
    except AtollError as error:
        print("\n".join([f"atoll: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return error.exit_code
    except Interrupted as error:
        print(f"atoll: {error.message}", file=sys.stderr)
        return 130
    print(json.dumps(found.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(atoll.run, __doc__))
