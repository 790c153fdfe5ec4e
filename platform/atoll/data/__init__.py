"""What clients train on: sources as picklable records, opened lazily in every process; no torch, no pandas.

Rooms that may import this one: learner's wiring in `experiment`, evaluation, cli. It imports only errors and rng.
"""

from atoll.data.clients import attributes_of, encoding_of, is_null
from atoll.data.opening import describe, open_data
from atoll.data.partition import partition_examples
from atoll.data.shape import (
    Array,
    Category,
    CategoryColumn,
    ClientData,
    DataShape,
    Encoding,
    HeldOut,
    NumericColumn,
)
from atoll.data.sources import (
    ArraysSource,
    ConstantExamples,
    CustomSource,
    DataSource,
    Dirichlet,
    Flights,
    Iid,
    LeafOutputsSource,
    LogNormalExamples,
    Movielens,
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
    "CategoryColumn",
    "ClientData",
    "ClientTable",
    "ConstantExamples",
    "CustomSource",
    "DataShape",
    "DataSource",
    "Dirichlet",
    "Encoding",
    "Flights",
    "HeldOut",
    "Iid",
    "LeafOutputsSource",
    "LogNormalExamples",
    "Movielens",
    "NumericColumn",
    "ParquetSource",
    "Partition",
    "QuantitySkew",
    "Shakespeare",
    "Shards",
    "SyntheticSource",
    "arrange",
    "attributes_of",
    "client_table",
    "content_digest",
    "describe",
    "encoding_of",
    "is_null",
    "open_data",
    "partition_examples",
]
