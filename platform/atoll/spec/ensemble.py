"""The `ensemble` section: leaf models of disjoint clusters, joined by an over-arch, beside controls (FEL)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.spec.base import Count, Positive, Section, Text
from atoll.spec.execution import Stop
from atoll.spec.training import Aggregation, Client, Schedule

__all__ = [
    "Controls",
    "Ensemble",
    "FederatedFit",
    "Fit",
    "LogisticOverArch",
    "MeanOverArch",
    "MedianOverArch",
    "MlpOverArch",
    "OverArch",
    "ServerFit",
    "WeightedMeanOverArch",
]

#: dotted key → value, as in overrides
Overrides = dict[str, Any]
Inputs = Literal["logits", "penultimate"]
_INPUTS = "What the over-arch reads of each leaf: its logit, or the input of its last linear layer."
_L2 = "Penalty on the weights, intercepts free: summed log loss + l2 / 2 · |weights|², inputs standardised."


class MeanOverArch(Section):
    """Mean of the leaves' logits; nothing to fit."""

    kind: Literal["mean"]


class MedianOverArch(Section):
    """Median of the leaves' logits; nothing to fit."""

    kind: Literal["median"]


class WeightedMeanOverArch(Section):
    """Mean of the leaves' logits with weights, at least 0 and of sum 1, that make the log loss least."""

    kind: Literal["weighted_mean"]


class LogisticOverArch(Section):
    """Logistic stacking (Wolpert 1992): a linear layer over what the leaves say."""

    kind: Literal["logistic"]
    inputs: Inputs = Field(default="logits", description=_INPUTS)
    l2: Positive = Field(default=1.0, description=_L2)


class MlpOverArch(Section):
    """A small network over what the leaves say."""

    kind: Literal["mlp"]
    inputs: Inputs = Field(default="logits", description=_INPUTS)
    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        default=(16,), description="Units of each hidden layer."
    )
    l2: Positive = Field(default=1.0, description=_L2)


OverArch = Annotated[
    MeanOverArch | MedianOverArch | WeightedMeanOverArch | LogisticOverArch | MlpOverArch,
    Field(discriminator="kind"),
]


class ServerFit(Section):
    """On the rows that evaluation.server_share sets aside: the server's own, or of clients that opted in."""

    kind: Literal["server"]


class FederatedFit(Section):
    """By federated learning over the clients that train, the leaves frozen: no data leaves a client."""

    kind: Literal["federated"]
    client: Client = Field(description="What one client does in one task.")
    schedule: Schedule = Field(description="Who starts when, and what closes a server step.")
    aggregation: Aggregation = Field(description="How updates become the next version.")
    stop: Stop = Field(description="When it ends.")


Fit = Annotated[ServerFit | FederatedFit, Field(discriminator="kind")]


class Controls(Section):
    """Models to compare the ensemble with; each by the dotted keys that are different for it; null: it is not run."""

    single: Overrides | None = Field(
        default={}, description="One model on all clients, for as many server steps as a leaf."
    )
    equal_updates: Overrides | None = Field(
        default={},
        description="One model on all clients, with the client updates that all leaves together are to make.",
    )
    random: Overrides | None = Field(default={}, description="Leaves of random clusters of the same sizes.")
    large: Overrides | None = Field(
        default={},
        description="One model on all clients with as many weights as all leaves together, and their client updates; "
        "more than a device may hold: the upper mark.",
    )


class Ensemble(Section):
    """One leaf model per cluster, joined by an over-arch on the server (federated ensemble learning, FEL)."""

    over_arch: OverArch = Field(default=LogisticOverArch(kind="logistic"), description="The layer over the leaves.")
    fit: Fit = Field(default=ServerFit(kind="server"), description="What the over-arch is fitted on.")
    leaves: dict[Text, Overrides] = Field(
        default={}, description="Cluster → dotted key → value: what is different for its leaf."
    )
    controls: Controls = Field(default=Controls(), description="What the ensemble is compared with.")
    resamples: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=1000, description="Resamples of the clients for the intervals; 0: no intervals."
    )
