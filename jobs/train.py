"""Runs one experiment as a Ray job: `ray job submit -- python jobs/train.py configs/NAME.yaml KEY=VALUE …`.

Connects to the Ray cluster of the job (RAY_ADDRESS is set there); without one it starts an embedded Ray. Prints one
JSON object as its last line. Give `tracking.uri` a server that the cluster reaches: an SQLite file would stay on the
node.
"""

from __future__ import annotations

import json
import sys

import atoll
from atoll.errors import AtollError


def main() -> int:
    """Exit code as the command line's."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        run = atoll.run(sys.argv[1], *sys.argv[2:])
    except AtollError as error:
        print(f"atoll: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(run.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
