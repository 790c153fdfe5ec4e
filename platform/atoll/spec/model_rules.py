"""Rules of the `model` section, in itself and with the data; yields problems as `rules` does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atoll.errors import Problem
from atoll.spec.data import MovielensData
from atoll.spec.execution import RuntimeSection
from atoll.spec.training import Client, DlrmModel, Model, WideDeepModel

__all__ = ["kernel_findings", "model_findings", "precision_findings"]

#: (paths that the rule reads, the problem)
Finding = tuple[tuple[str, ...], Problem]

_COMPILED, _SINGLE = ("logistic", "mlp", "wide_deep", "dlrm"), ("cnn", "char_lstm", "custom")
_NEEDS = {"cnn": ("arrays", "custom"), "char_lstm": ("shakespeare", "custom")}


def model_findings(model: Model, data: Any) -> Iterator[Finding]:
    """What the model needs of itself and of the data.

    Args:
        model: the section.
        data: the section; None where it is missing or wrong in itself.
    """
    if isinstance(model, DlrmModel) and model.bottom is not None and model.bottom[-1] != model.embedding_dim:
        rule = f"a last layer as wide as model.embedding_dim ({model.embedding_dim})"
        why, hint = "Its output is multiplied with embeddings", "Set model.bottom to null for that one layer"
        yield (
            ("model.bottom", "model.embedding_dim", "model.kind"),
            Problem("model.bottom", str(list(model.bottom)), rule, why, hint),
        )
    if data is None:
        return
    kind = data.kind
    if isinstance(model, WideDeepModel | DlrmModel):
        yield from _categories(model, data)
    elif kind not in _NEEDS.get(model.kind, (kind,)):
        yield _misfit(model.kind, kind, f"data.kind {' or '.join(_NEEDS[model.kind])} for {model.kind}")
    elif kind == "shakespeare" and model.kind not in ("char_lstm", "custom"):
        yield _misfit(model.kind, kind, "model.kind char_lstm or custom for shakespeare")


def kernel_findings(runtime: RuntimeSection, model: Model) -> Iterator[Finding]:
    """Whether there is such a kernel for the model."""
    paths = ("runtime.kernel", "runtime.device_class", "model.kind", "model.history")
    kernel, kind = runtime.kernel, model.kind
    has_history = isinstance(model, DlrmModel) and model.history
    if kernel == "compiled" and (kind not in _COMPILED or has_history or runtime.device_class != "cpu"):
        found = f"compiled for {kind}{' with history' if has_history else ''} on {runtime.device_class}"
        rule = f"a kernel that there is: compiled for {', '.join(_COMPILED)} without history, on cpu"
        yield paths, Problem("runtime.kernel", found, rule, hint="Leave it at auto")
    if kernel == "single" and kind not in _SINGLE:
        rule = f"a kernel that there is: single for {', '.join(_SINGLE)}"
        yield paths, Problem("runtime.kernel", f"single for {kind}", rule, hint="Leave it at auto")


def precision_findings(runtime: RuntimeSection, client: Client) -> Iterator[Finding]:
    """Whether the kernel can compute so."""
    if runtime.kernel == "compiled" and client.precision != "float32":
        rule = f"auto, lanes or single with client.precision {client.precision}"
        why, hint = "Compiled kernels compute in float32", "Leave it at auto, or client.precision at float32"
        yield (
            ("runtime.kernel", "client.precision"),
            Problem("runtime.kernel", f"compiled with client.precision {client.precision}", rule, why, hint),
        )


def _misfit(model: str, data: str, rule: str) -> Finding:
    problem = Problem(
        "model.kind", f"{model} with data.kind {data}", rule, "The model cannot read the shape of these examples"
    )
    return ("model.kind", "data.kind"), problem


def _categories(model: WideDeepModel | DlrmModel, data: Any) -> Iterator[Finding]:
    why = "Its embeddings are those of categories"
    if data.kind in ("arrays", "shakespeare"):
        rule = f"data.kind flights, movielens, parquet, synthetic or custom for {model.kind}"
        problem = Problem("model.kind", f"{model.kind} with data.kind {data.kind}", rule, why)
        yield ("model.kind", "data.kind"), problem
    elif not getattr(data, "categories", True):
        rule = "data with categorical columns"
        hint = "Name some in data.categories, or use model.kind mlp or logistic"
        problem = Problem("model.kind", f"{model.kind} without data.categories", rule, why, hint)
        yield ("model.kind", "data.kind", "data.categories"), problem
    if not isinstance(model, DlrmModel) or not model.history or data.kind == "custom":
        return
    if not isinstance(data, MovielensData) or not data.history:
        rule = "data with a history: columns that share the table of an item"
        hint = "Set model.history to false, or use data.kind movielens with data.history, such as 10"
        problem = Problem("model.history", f"true with data.kind {data.kind} without a history", rule, "", hint)
        yield ("model.history", "data.kind", "data.history"), problem
