"""Runs an ensemble with its controls as a Ray job: `ray job submit -- python jobs/ensemble.py configs/fel_NAME.yaml`.

As jobs/train.py: prints one JSON object as its last line, and a job's next attempt (NAME-a2 after NAME-a1) goes on
where the last one stopped; give `tracking.uri` a server and `runtime.store` a place that every node reaches. Every leaf
has its own aggregator; all leaves of an ensemble train at the same time on the cluster's client pools.
"""

from __future__ import annotations

from train import main

if __name__ == "__main__":
    main()
