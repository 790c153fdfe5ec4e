"""The `population` and `clusters` sections: who exists, how fast they are, when they are there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from atoll.spec.base import Count, LongCount, NonNegative, Positive, Section, Share, Text

__all__ = [
    "AlwaysAvailability",
    "AttributeClusters",
    "Availability",
    "Clusters",
    "ClustersSection",
    "ConstantDevices",
    "DataVolumeClusters",
    "Devices",
    "DevicesSection",
    "DiurnalAvailability",
    "ExponentialDevices",
    "FileClusters",
    "HalfNormalDevices",
    "IntervalsAvailability",
    "KmeansClusters",
    "LogNormalDevices",
    "PapayaDevices",
    "Population",
    "RandomClusters",
    "SingleClusters",
    "TableDevices",
]


class DevicesSection(Section):
    """What all laws of device speed share."""

    per_example_s: NonNegative = Field(default=0.0, description="Seconds added per training example.")
    overhead_s: NonNegative = Field(default=0.0, description="Seconds added to every task: download and upload.")
    dropout: Share = Field(default=0.0, description="Probability that a task fails part-way.")
    jitter_sigma: NonNegative = Field(
        default=0.0, description="Log-normal spread between participations of one client; 0: always the same time."
    )
    size_correlation: Annotated[float, Field(ge=-1, le=1)] = Field(
        default=0.0, description="Rank correlation (Gaussian copula) of a client's slowness with its example count."
    )
    timeout_s: Positive | None = Field(default=None, description="A task that runs longer is lost; null: no limit.")


class ConstantDevices(DevicesSection):
    """Every client takes as long."""

    kind: Literal["constant"]
    value_s: NonNegative = Field(default=60.0, description="Seconds per task.")


class HalfNormalDevices(DevicesSection):
    """min_s + |Normal(0, scale_s)| per client: the law of the FedBuff paper."""

    kind: Literal["half_normal"]
    scale_s: Positive = Field(default=60.0, description="Standard deviation of the underlying normal law.")
    min_s: NonNegative = Field(default=0.0, description="Seconds of the fastest client.")


class ExponentialDevices(DevicesSection):
    """Exponential over clients."""

    kind: Literal["exponential"]
    mean_s: Positive = Field(default=60.0, description="Mean seconds.")


class LogNormalDevices(DevicesSection):
    """Log-normal over clients."""

    kind: Literal["log_normal"]
    median_s: Positive = Field(default=60.0, description="Median seconds.")
    sigma: NonNegative = Field(default=1.0, description="Standard deviation of the logarithm.")


class PapayaDevices(DevicesSection):
    """The histogram of execution times that the Papaya paper published."""

    kind: Literal["papaya"]


class TableDevices(DevicesSection):
    """Measured times: the empirical law of one column."""

    kind: Literal["table"]
    path: Text = Field(description="Parquet or CSV file.")
    column: Text = Field(description="Column of seconds, one row per measured device.")


Devices = Annotated[
    ConstantDevices | HalfNormalDevices | ExponentialDevices | LogNormalDevices | PapayaDevices | TableDevices,
    Field(discriminator="kind"),
]


class AlwaysAvailability(Section):
    """Every client is always there."""

    kind: Literal["always"]


class DiurnalAvailability(Section):
    """One window per day and client; the phase differs between clients."""

    kind: Literal["diurnal"]
    start_hour: Annotated[float, Field(ge=0, lt=24)] = Field(default=22.0, description="Mean hour the window opens.")
    hours: Annotated[float, Field(gt=0, le=24)] = Field(default=8.0, description="Length of the window.")
    spread_hours: Annotated[float, Field(ge=0, le=24)] = Field(
        default=4.0, description="Spread of the opening hour over clients."
    )


class IntervalsAvailability(Section):
    """Recorded windows, repeated with a period; clients map onto the traces in the file."""

    kind: Literal["intervals"]
    path: Text = Field(description="Parquet or CSV file with columns client, start_s, end_s.")
    period_s: Positive = Field(description="Length of the trace, after which it repeats.")


Availability = Annotated[AlwaysAvailability | DiurnalAvailability | IntervalsAvailability, Field(discriminator="kind")]


class Population(Section):
    """All clients that exist."""

    size: Annotated[int, Field(ge=1, le=10**8)] | Literal["data"] = Field(
        default="data", description="Number of clients; data: as many as the data has. Ids map onto the data's clients."
    )
    devices: Devices = Field(default=HalfNormalDevices(kind="half_normal"), description="How long a task takes.")
    availability: Availability = Field(
        default=AlwaysAvailability(kind="always"), description="When a client can take part."
    )
    device_memory_bytes: LongCount | None = Field(
        default=None,
        description="Weights of one model version, float32, that a device can hold; a model over it is refused. "
        "null: any.",
    )


#: a number of clusters: leaf models, each with its own run
ClusterCount = Annotated[int, Field(ge=1, le=1000)]


class ClustersSection(Section):
    """What all rules of clusters share."""

    only: Text | None = Field(
        default=None, description="Train the leaf of this cluster alone; null: all of them, for an ensemble."
    )


class SingleClusters(ClustersSection):
    """One cluster, named all: plain federated learning."""

    kind: Literal["single"]


class RandomClusters(ClustersSection):
    """Drawn by lot: a function of the seed and the client's id alone. Named r0, r1, and so on."""

    kind: Literal["random"]
    count: ClusterCount | None = Field(
        default=None, description="Number of clusters, equal up to one client; null: as many as sizes."
    )
    sizes: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=1000)] | None = Field(
        default=None, description="Clients of each cluster, which sum to the population; null: equal parts."
    )


class AttributeClusters(ClustersSection):
    """By what is publicly known of each client: the values of one attribute, or bins of it."""

    kind: Literal["attribute"]
    column: Text = Field(description="Attribute of the data's clients.")
    bins: (
        Annotated[int, Field(ge=2, le=1000)]
        | Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=999)]
        | None
    ) = Field(
        default=None,
        description="Quantile bins over the clients that train, or ascending edges: below the first, from edge to "
        "edge, from the last on; null: one cluster per value.",
    )
    min_clients: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Values with fewer clients that train are joined into the cluster other."
    )


class DataVolumeClusters(ClustersSection):
    """By how many training examples a client has: quantiles. Named q0 (fewest), q1, and so on."""

    kind: Literal["data_volume"]
    count: ClusterCount = Field(description="Number of clusters, equal up to one client.")


class KmeansClusters(ClustersSection):
    """By what a client's training examples look like: k-means over clients. Named c0 (most clients), c1, and so on."""

    kind: Literal["kmeans"]
    count: ClusterCount = Field(description="Number of clusters.")
    on: Literal["labels", "features"] = Field(
        default="labels",
        description="A client's label histogram; or its mean features and category histograms, each column of the "
        "data counting the same.",
    )


class FileClusters(ClustersSection):
    """By a column of a file of one's own."""

    kind: Literal["file"]
    path: Text = Field(description="Parquet or CSV file, one row per client.")
    client_column: Text = Field(
        description="Column that says whose row it is: an attribute's values, if the data has an attribute of this "
        "name, else the data's client numbers 0, 1 …"
    )
    cluster_column: Text = Field(description="Column that names the client's cluster.")


Clusters = Annotated[
    SingleClusters | RandomClusters | AttributeClusters | DataVolumeClusters | KmeansClusters | FileClusters,
    Field(discriminator="kind"),
]
