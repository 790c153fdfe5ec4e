"""The `population` and `clusters` sections: who exists, how fast they are, when they are there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from atoll.spec.base import NonNegative, Positive, Section, Share, Text

__all__ = [
    "AlwaysAvailability",
    "Availability",
    "Clusters",
    "ConstantDevices",
    "Devices",
    "DevicesSection",
    "DiurnalAvailability",
    "ExponentialDevices",
    "HalfNormalDevices",
    "IntervalsAvailability",
    "LogNormalDevices",
    "PapayaDevices",
    "Population",
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


class Clusters(Section):
    """Disjoint parts of the population, each with its own leaf model; one part in this version."""

    kind: Literal["single"] = Field(description="How clients are put into clusters; this version has only single.")
