"""`Spec`: one experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from atoll.errors import SpecError
from atoll.spec.base import Section
from atoll.spec.data import Data
from atoll.spec.ensemble import Ensemble
from atoll.spec.execution import Comparison, Evaluation, RayRuntime, Runtime, Stop, Tracking
from atoll.spec.population import Clusters, Population, SingleClusters
from atoll.spec.rules import cross_problems
from atoll.spec.training import Aggregation, Client, Model, Schedule

__all__ = ["Spec"]


class Spec(Section):
    """One experiment of atoll, complete; every default lives in these classes and nowhere else.

    Built by `atoll.spec.load` or `parse`, which tell all problems at once. Built directly, wrong fields raise
    pydantic's ValidationError, and rules between fields raise SpecError.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_\-. :/]*$", max_length=250, examples=["my-run"])] = (
        Field(description="Name of the run: letters, digits, _ - . space : and /, as MLflow allows.")
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(default=0, description="Key of all randomness.")
    data: Data = Field(description="Which examples the clients hold.")
    population: Population = Field(default=Population(), description="Who exists, how fast, and when available.")
    clusters: Clusters = Field(default=SingleClusters(kind="single"), description="Disjoint parts of the population.")
    model: Model = Field(description="What is trained.")
    client: Client = Field(description="What one client does in one task.")
    schedule: Schedule = Field(description="Who starts when, and what closes a server step.")
    aggregation: Aggregation = Field(description="How updates become the next version.")
    ensemble: Ensemble | None = Field(
        default=None, description="A leaf model per cluster, joined by an over-arch; null: one model."
    )
    privacy: None = Field(default=None, description="Privacy is not available in this version.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What is measured, and how often.")
    stop: Stop = Field(description="When the run ends.")
    tracking: Tracking = Field(default=Tracking(), description="The MLflow store, and checkpoints.")
    runtime: Runtime = Field(default=RayRuntime(kind="ray"), description="Where the work is done.")
    comparison: Comparison | None = Field(default=None, description="Arms and seeds to compare; null: one run.")

    @model_validator(mode="after")
    def _rules(self) -> Spec:
        if problems := cross_problems(dict(self)):
            raise SpecError(problems)
        return self
