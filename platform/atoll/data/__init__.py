"""What clients train on: sources as picklable records, opened lazily in every process; no torch, no pandas.

Rooms that may import this one: learner's wiring in `experiment`, evaluation, cli. It imports only errors and rng.
"""

from atoll.data.opening import describe, open_data
from atoll.data.partition import partition_examples
from atoll.data.shape import Array, Category, ClientData, DataShape, HeldOut
from atoll.data.sources import (
    ArraysSource,
    ConstantExamples,
    CustomSource,
    DataSource,
    Dirichlet,
    Flights,
    Iid,
    LogNormalExamples,
    ParquetSource,
    Partition,
    QuantitySkew,
    Shakespeare,
    Shards,
    SyntheticSource,
)
from atoll.data.table import Arrangement, ClientTable, arrange, client_table, content_digest

__all__ = [
    "Arrangement",
    "Array",
    "ArraysSource",
    "Category",
    "ClientData",
    "ClientTable",
    "ConstantExamples",
    "CustomSource",
    "DataShape",
    "DataSource",
    "Dirichlet",
    "Flights",
    "HeldOut",
    "Iid",
    "LogNormalExamples",
    "ParquetSource",
    "Partition",
    "QuantitySkew",
    "Shakespeare",
    "Shards",
    "SyntheticSource",
    "arrange",
    "client_table",
    "content_digest",
    "describe",
    "open_data",
    "partition_examples",
]
