"""atoll from Python, cell by cell: plan an experiment, run it, look at it, change one thing, compare.

Run it whole with `.venv/bin/python jobs/notebook.py`, or cell by cell in an editor that knows `# %%`.
"""

# %% Plan: nothing is trained yet, and the whole virtual timeline is known.
import atoll
from atoll.tracking import Target, compare, to_text

spec = "configs/fedbuff_flights.yaml"
small = ("runtime={kind: inline}", "stop.server_steps=60", "evaluation.every_steps=10")
report = atoll.plan(spec, *small)
print(f"{report.summary.virtual_hours:.2f} virtual hours, mean staleness {report.summary.mean_staleness:.1f}")

# %% Run: the same bits here, without Ray, as on any number of workers.
fedbuff = atoll.run(spec, *small)
print(fedbuff.model_digest[:16], dict(fedbuff.metrics)["eval/auc"])

# %% History: every metric of every server step, as (step, value).
history = fedbuff.history()
print([(step, round(value, 3)) for step, value in history["eval/auc"]])

# %% Weights: NumPy arrays, names in the safetensors file beside them.
model = fedbuff.model()
print(model.version, model.dense.shape, [table.shape for table in model.tables])

# %% Change one thing and compare: cost until the AUC that both reach.
constant = atoll.run(spec, *small, "name=no-staleness-weight", "aggregation.staleness={kind: constant}")
reached = min(max(value for _, value in run.history()["eval/auc"]) for run in (fedbuff, constant))
target = Target("auc", reached)
print(to_text(compare([fedbuff.summary(), constant.summary()], target=target)))

# %% A run is found again by its id, its name or its folder.
assert atoll.load(fedbuff.run_id).model_digest == fedbuff.model_digest  # noqa: S101
