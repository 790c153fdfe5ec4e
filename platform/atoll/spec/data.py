"""The `data` section: which examples the clients hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.spec.base import Count, Factory, NonNegative, Positive, Section, Share, Text

__all__ = [
    "ArraysData",
    "ConstantExamples",
    "CustomData",
    "Data",
    "DirichletPartition",
    "Examples",
    "FlightsData",
    "IidPartition",
    "LeafOutputsData",
    "LogNormalExamples",
    "MovielensData",
    "ParquetData",
    "Partition",
    "QuantitySkewPartition",
    "ShakespeareData",
    "ShardsPartition",
    "SyntheticData",
]


class FlightsData(Section):
    """Flights that left New York in 2013: one client per aircraft; is a flight over 15 minutes late?"""

    kind: Literal["flights"]
    weather: bool = Field(default=True, description="Whether the weather at departure is among the features.")


class MovielensData(Section):
    """MovieLens 100K, from your own installation of recbole 1.2.1: one client per user; is a movie liked?"""

    kind: Literal["movielens"]
    path: Text | None = Field(
        default=None, description="Folder with ml-100k.inter, .item, .user; null: of the installed package recbole."
    )
    threshold: Annotated[int, Field(ge=1, le=5)] = Field(default=4, description="Fewest stars that count as liked.")
    history: Annotated[int, Field(ge=0, le=50)] = Field(
        default=0, description="Columns with the movies that the user liked last; they share the movie's table."
    )
    user_id: bool = Field(default=False, description="Whether the user is a category.")
    holdout: Share = Field(default=0.2, description="Last part of each user's ratings, held out as split seen.")
    unseen: Share = Field(default=0.1, description="Part of the users that never trains, held out as split unseen.")


class ShakespeareData(Section):
    """Shakespeare's plays: one client per role; which character comes next?"""

    kind: Literal["shakespeare"]
    stride: Annotated[int, Field(ge=1, le=80)] = Field(
        default=10, description="Characters from one training example to the next; 1 uses every window."
    )


class ParquetData(Section):
    """A Parquet file or folder with a column that names the client."""

    kind: Literal["parquet"]
    path: Text = Field(description="File, or folder of files.")
    client_column: Text = Field(description="Column that says whose row it is.")
    label_column: Text = Field(description="Column to predict.")
    features: Annotated[tuple[Text, ...], Field(strict=False)] | None = Field(
        default=None, description="Numeric columns; null: every column that is not named elsewhere."
    )
    categories: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(), description="Categorical columns, each with an embedding table."
    )
    attributes: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(), description="Columns with one value per client, for clusters; features only if named there too."
    )
    task: Literal["binary", "multiclass"] = Field(default="binary", description="What the label is.")
    holdout: Share = Field(default=0.2, description="Last part of each client's rows, held out as split seen.")
    unseen: Share = Field(default=0.1, description="Part of the clients that never trains, held out as split unseen.")


class IidPartition(Section):
    """Examples dealt at random; client sizes equal up to one."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Label skew: each class is split over the clients by Dirichlet proportions."""

    kind: Literal["dirichlet"]
    alpha: Positive = Field(default=0.1, description="Concentration; smaller is more skewed.")


class ShardsPartition(Section):
    """Label skew: sorted by label and cut into equal shards."""

    kind: Literal["shards"]
    per_client: Count = Field(default=2, description="Shards that each client receives.")


class QuantitySkewPartition(Section):
    """Examples dealt at random; log-normal client sizes."""

    kind: Literal["quantity_skew"]
    sigma: NonNegative = Field(default=1.0, description="Standard deviation of the logarithm of the client's size.")


Partition = IidPartition | DirichletPartition | ShardsPartition | QuantitySkewPartition


class ArraysData(Section):
    """A plain dataset that is split over clients here."""

    kind: Literal["arrays"]
    path: Text = Field(description="An .npz file with x, y, x_test, y_test; or a folder of idx files (MNIST's form).")
    partition: Partition = Field(
        default=IidPartition(kind="iid"), discriminator="kind", description="How the examples are split over clients."
    )
    clients: Count = Field(default=100, description="Number of clients that share the examples.")


class ConstantExamples(Section):
    """Every generated client has as many examples."""

    kind: Literal["constant"]
    count: Count = Field(default=32, description="Training examples per client.")


class LogNormalExamples(Section):
    """Generated clients differ in size, log-normally."""

    kind: Literal["log_normal"]
    median: Positive = Field(default=32.0, description="Median of a client's training examples.")
    sigma: NonNegative = Field(default=1.0, description="Standard deviation of the logarithm.")
    max: Count = Field(default=1000, description="Most examples that one client has.")


Examples = ConstantExamples | LogNormalExamples


class SyntheticData(Section):
    """Clients generated from their ids: nothing is stored, so the population may be huge."""

    kind: Literal["synthetic"]
    features: Count = Field(default=16, description="Numeric features.")
    classes: Annotated[int, Field(ge=2, le=2**20)] = Field(default=2, description="Classes; 2 is a binary task.")
    examples: Examples = Field(
        default=ConstantExamples(kind="constant"), discriminator="kind", description="Training examples per client."
    )
    feature_heterogeneity: NonNegative = Field(
        default=0.0, description="Standard deviation of a client's feature means; 0: all clients alike."
    )
    label_heterogeneity: NonNegative = Field(
        default=0.0, description="Weight of a client's own labelling rule beside the common one; 0: all alike."
    )
    categories: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        default=(), description="Number of values of each categorical column."
    )


class CustomData(Section):
    """Data of your own."""

    kind: Literal["custom"]
    factory: Factory = Field(description="Callable that returns an object with atoll's ClientData interface.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory; plain values.")


class LeafOutputsData(Section):
    """What the frozen leaves of an ensemble say of every client's rows; written where an over-arch learns by FL."""

    kind: Literal["leaf_outputs"]
    path: Text = Field(description="File that was written for it.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of its content.")


Data = Annotated[
    FlightsData
    | MovielensData
    | ShakespeareData
    | ParquetData
    | ArraysData
    | SyntheticData
    | CustomData
    | LeafOutputsData,
    Field(discriminator="kind"),
]
