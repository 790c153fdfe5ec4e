"""atoll: a Ray-based distributed experiment platform for federated learning."""

__version__ = "0.1.0"
