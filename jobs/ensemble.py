"""Runs an ensemble with its controls as a Ray job: `ray job submit -- python jobs/ensemble.py configs/fel_NAME.yaml`.

As jobs/train.py: prints one JSON object as its last line, and a job's next attempt (NAME-a2 after NAME-a1) goes on
where the last one stopped; give `tracking.uri` a server and `runtime.store` a place that every node reaches. Every leaf
has its own aggregator; all leaves of an ensemble train at the same time on the cluster's client pools.
"""

from __future__ import annotations

import json
import sys

from train import run_key

import atoll
from atoll.errors import AtollError, Interrupted


def main() -> int:
    """Exit code as the command line's."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = atoll.run_ensemble(sys.argv[1], *sys.argv[2:], key=run_key())
    except AtollError as error:
        print("\n".join([f"atoll: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return error.exit_code
    except Interrupted as error:
        print(f"atoll: {error.message}", file=sys.stderr)
        return 130
    print(json.dumps(found.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
