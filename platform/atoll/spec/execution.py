"""The sections round the learning: `evaluation`, `stop`, `tracking`, `runtime`, `comparison`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.spec.base import Count, LongCount, NonNegative, Positive, Section, Share, Text

__all__ = [
    "Comparison",
    "Elastic",
    "Evaluation",
    "InlineRuntime",
    "RayRuntime",
    "Runtime",
    "Stop",
    "Target",
    "Tracking",
]

Metric = Literal["loss", "accuracy", "auc", "normalized_entropy"]


class Evaluation(Section):
    """What is measured on held-out rows, and how often."""

    every_steps: Count = Field(default=10, description="Server steps between two evaluations.")
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, min_length=1)] = Field(
        default=("loss", "accuracy"), description="What is measured."
    )
    split: Literal["unseen", "seen"] = Field(
        default="unseen", description="unseen: clients that never train; seen: held-out rows of clients that do."
    )
    per_client: bool = Field(default=True, description="Whether the spread over clients is reported too.")
    server_share: Share = Field(
        default=0.0,
        description="Share of the split's clients, by lot, whose held-out rows are the server's: an over-arch is "
        "fitted on them, nothing is measured on them.",
    )


class Target(Section):
    """A quality at which the run stops; loss and normalized_entropy fall to it, other metrics rise to it."""

    metric: Metric = Field(description="One of evaluation.metrics.")
    value: float = Field(description="Reached when loss or normalized_entropy ≤ value, or another metric ≥ value.")


class Stop(Section):
    """When the run ends: at the first of these."""

    server_steps: Count = Field(description="Server steps at most.")
    target: Target | None = Field(default=None, description="Quality that ends the run early; null: none.")


class Tracking(Section):
    """Where MLflow keeps what happened."""

    uri: Text = Field(default="sqlite:///mlflow.db", description="MLflow tracking URI.")
    experiment: Text | None = Field(default=None, description="MLflow experiment; null: the spec's name.")
    checkpoint_every_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, description="Server steps between checkpoints; 0: only the final model."
    )
    artifacts: Text | None = Field(default=None, description="Root of artifacts of a new experiment; null: MLflow's.")


class RuntimeSection(Section):
    """What both runtimes share."""

    device_class: Literal["cpu", "cuda"] = Field(default="cpu", description="Where blocks are trained.")
    kernel: Literal["auto", "compiled", "lanes", "single"] = Field(
        default="auto",
        description="What trains a block: compiled code (logistic, mlp, wide_deep, dlrm without history, on CPUs), all "
        "its clients at once in torch, or one after another in torch (cnn, char_lstm, custom); auto: the fastest.",
    )
    lanes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto", description="Clients trained at once in a block, W; auto: from the profile table."
    )
    profile: Text | None = Field(
        default=None,
        description="Table that `atoll tune` wrote: what kernel and lanes at auto mean for this model; null: atoll's.",
    )
    memory_bytes: LongCount | None = Field(
        default=None, description="Memory that live model versions may take; null: measured."
    )
    store: Text | None = Field(
        default=None,
        description="Shared folder, or s3://, gs://, az:// URL, for journal and snapshots; null: the run's own folder.",
    )
    snapshot_every_s: NonNegative = Field(
        default=5.0,
        description="Wall seconds between snapshots, at most 3 % of the time; 0: whenever a step has closed.",
    )
    hang_s: Positive | None = Field(
        default=None, description="Wall seconds without an answer after which a process is replaced; null: adaptive."
    )
    max_failures: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=3, description="Failures of client code that are tried again before the run stops."
    )


NumWorkers = Annotated[int, Field(ge=1, le=100_000)]


class Elastic(Section):
    """As many client pools as the plan can keep at work now, on a Ray cluster that grows and shrinks."""

    min: NumWorkers = Field(default=1, description="Client pools that stay as long as the run has work.")
    max: NumWorkers = Field(description="Client pools at most.")


class RayRuntime(RuntimeSection):
    """Blocks are spread over Ray workers."""

    kind: Literal["ray"]
    workers: NumWorkers | Elastic = Field(
        default=1, description="Client pools: a number, or {min, max}, between which they follow the plan's width."
    )
    gpus_per_worker: NonNegative = Field(default=0.0, description="GPUs, or part of one, that each worker reserves.")
    labels: dict[Text, Text] = Field(
        default={}, description="Labels of the Ray nodes that workers go to, such as one kind of processor; {}: any."
    )
    object_store_bytes: Annotated[int, Field(ge=78_643_200, le=2**63 - 1)] | None = Field(
        default=None, description="Object store of an embedded Ray; null: Ray's default."
    )

    @property
    def least_workers(self) -> int:
        """Client pools that stay."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most_workers(self) -> int:
        """Client pools at most."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


class InlineRuntime(RuntimeSection):
    """Everything in this process, without Ray, with the same bits."""

    kind: Literal["inline"]


Runtime = Annotated[RayRuntime | InlineRuntime, Field(discriminator="kind")]


class Comparison(Section):
    """Arms of one experiment: the file with a few values changed, each over the same seeds."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**63 - 1)], ...], Field(strict=False, min_length=1)] = Field(
        description="Seeds; every arm runs with each."
    )
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        description="Arm name → dotted key → value, as in overrides."
    )
    baseline: Text = Field(description="Arm that the others are compared with.")
