"""The sections that decide what is learnt: `model`, `client`, `schedule`, `aggregation`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.spec.base import Count, Factory, NonNegative, Positive, Section, Share, Text

__all__ = [
    "AdagradOptimizer",
    "AdamOptimizer",
    "Aggregation",
    "AsyncSchedule",
    "CharLstmModel",
    "Client",
    "CnnModel",
    "ConstantRate",
    "ConstantStaleness",
    "CosineRate",
    "CustomModel",
    "DlrmModel",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "InverseSqrtRate",
    "LogisticModel",
    "MlpModel",
    "Model",
    "ModelSection",
    "PolynomialStaleness",
    "Rate",
    "Schedule",
    "ServerOptimizer",
    "SgdOptimizer",
    "Staleness",
    "StepRate",
    "SyncSchedule",
    "ThresholdStaleness",
    "Weighting",
    "WideDeepModel",
    "YogiOptimizer",
]

Sampling = Literal["with_replacement", "without_replacement"]


class ModelSection(Section):
    """What all models share."""

    init_from: Text | None = Field(
        default=None, description="A safetensors file with the first weights; null: drawn from the seed."
    )


class LogisticModel(ModelSection):
    """One linear layer; categorical columns through tables of weights."""

    kind: Literal["logistic"]


class MlpModel(ModelSection):
    """Fully connected layers with ReLU."""

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        default=(64,), description="Widths of the hidden layers."
    )
    embedding_dim: Count = Field(default=8, description="Width of the embedding of each categorical column.")


class WideDeepModel(ModelSection):
    """A linear part plus a deep part, over numbers and categories (Cheng et al. 2016)."""

    kind: Literal["wide_deep"]
    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        default=(64,), description="Widths of the deep part's hidden layers."
    )
    embedding_dim: Count = Field(default=8, description="Width of the embedding of each categorical column.")


class DlrmModel(ModelSection):
    """Embeddings, dot products of all pairs of them, and layers before and after (Naumov et al. 2019)."""

    kind: Literal["dlrm"]
    embedding_dim: Count = Field(default=16, description="Width of the embedding of each categorical column.")
    bottom: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Widths of the layers that make one more vector of the numeric features; the last is "
        "embedding_dim; null: that one layer.",
    )
    top: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        default=(256,), description="Widths of the hidden layers over the dot products."
    )
    history: bool = Field(
        default=False,
        description="Whether columns that share a table with an earlier one, the items before the item in question, "
        "are pooled by attention to it (Zhou et al. 2018).",
    )


class CnnModel(ModelSection):
    """Blocks of 3×3 convolution, GroupNorm, ReLU and max-pooling, then a linear layer."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        default=(32, 64), description="Channels of each block."
    )


class CharLstmModel(ModelSection):
    """Character embedding, LSTM, linear layer: the next character."""

    kind: Literal["char_lstm"]
    embedding: Count = Field(default=8, description="Width of the character embedding.")
    hidden: Count = Field(default=128, description="Width of each LSTM layer.")
    layers: Count = Field(default=2, description="Number of LSTM layers.")


class CustomModel(ModelSection):
    """A torch module of your own."""

    kind: Literal["custom"]
    factory: Factory = Field(description="Callable that returns a torch.nn.Module.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory; plain values.")


Model = Annotated[
    LogisticModel | MlpModel | WideDeepModel | DlrmModel | CnnModel | CharLstmModel | CustomModel,
    Field(discriminator="kind"),
]


class ConstantRate(Section):
    """The learning rate stays."""

    kind: Literal["constant"]


class StepRate(Section):
    """The learning rate falls in steps."""

    kind: Literal["step"]
    every_steps: Count = Field(description="Server steps between two falls.")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="What each fall multiplies by.")


class CosineRate(Section):
    """The learning rate falls along half a cosine."""

    kind: Literal["cosine"]
    total_steps: Count = Field(description="Server steps of the fall.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Factor at the end.")


class InverseSqrtRate(Section):
    """The learning rate rises linearly, then falls with the square root of the step."""

    kind: Literal["inverse_sqrt"]
    warmup_steps: Count = Field(description="Server steps of the rise.")


Rate = Annotated[ConstantRate | StepRate | CosineRate | InverseSqrtRate, Field(discriminator="kind")]
_CONSTANT = ConstantRate(kind="constant")


class Client(Section):
    """What one client does in one task: local SGD."""

    lr: Positive = Field(description="Learning rate of local SGD.")
    epochs: Count = Field(default=1, description="Passes over the client's examples.")
    batch_size: Count = Field(default=32, description="Examples per local step.")
    momentum: Share = Field(default=0.0, description="Momentum of local SGD, reset for each task.")
    weight_decay: NonNegative = Field(default=0.0, description="L2 penalty, as in torch.optim.SGD.")
    proximal_mu: NonNegative = Field(default=0.0, description="FedProx: pull towards the start weights.")
    short_batch_scaling: bool = Field(
        default=False, description="Whether a batch of n < batch_size examples uses lr · n / batch_size."
    )
    schedule: Rate = Field(default=_CONSTANT, description="Factor on lr by the task's start version.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of forward and backward passes; weights, their updates and sums stay float32 or finer. bfloat16 "
        "is faster on GPUs and on processors with AMX only, and never compiled.",
    )


class AsyncSchedule(Section):
    """A fixed number of tasks in flight; a task that ends is replaced at once."""

    kind: Literal["async"]
    concurrency: Count = Field(description="Tasks in flight in virtual time, C.")
    buffer_goal: Count = Field(description="Updates needed for a server step, K.")
    max_staleness: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Tasks that become more stale are aborted; null: no limit."
    )
    sampling: Sampling = Field(default="with_replacement", description="Whether a client may be in flight twice.")


class SyncSchedule(Section):
    """Rounds: a cohort starts on one version and the server waits for it."""

    kind: Literal["sync"]
    cohort: Count = Field(description="Updates that close a round.")
    over_selection: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="Share of additional tasks started in a round; the slowest are aborted."
    )
    deadline_s: Positive | None = Field(
        default=None, description="A round closes then with what has arrived; null: it waits for the cohort."
    )
    sampling: Sampling = Field(default="without_replacement", description="Whether a client may be in one round twice.")


Schedule = Annotated[AsyncSchedule | SyncSchedule, Field(discriminator="kind")]


class ConstantStaleness(Section):
    """Staleness is ignored."""

    kind: Literal["constant"]


class PolynomialStaleness(Section):
    """(1 + τ)^(−exponent); FedBuff's 1/√(1 + τ) by default."""

    kind: Literal["polynomial"]
    exponent: NonNegative = Field(default=0.5, description="How fast the weight falls with staleness.")


class ThresholdStaleness(Section):
    """1 up to a cut-off, another value after it."""

    kind: Literal["threshold"]
    cutoff: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(description="Last staleness with weight 1.")
    value_after: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Weight after the cut-off.")


Staleness = Annotated[ConstantStaleness | PolynomialStaleness | ThresholdStaleness, Field(discriminator="kind")]


class Weighting(Section):
    """What a client counts for by its n training examples: 1, n, √n or log10(1 + n)."""

    kind: Literal["equal", "examples", "sqrt", "log"] = Field(
        description="equal 1, examples n, sqrt √n, log log10(1+n)."
    )


class SgdOptimizer(Section):
    """w ← w − lr · m, m ← momentum · m + mean delta."""

    kind: Literal["sgd"]
    lr: Positive = Field(default=1.0, description="Server learning rate.")
    momentum: Share = Field(default=0.0, description="Server momentum.")
    schedule: Rate = Field(default=_CONSTANT, description="Factor on lr by server step.")


class AdamOptimizer(Section):
    """FedAdam (Reddi et al. 2021)."""

    kind: Literal["adam"]
    lr: Positive = Field(default=0.01, description="Server learning rate.")
    beta1: Share = Field(default=0.9, description="Decay of the first moment.")
    beta2: Share = Field(default=0.99, description="Decay of the second moment.")
    eps: Positive = Field(default=1e-3, description="Added to the root of the second moment: adaptivity τ.")
    schedule: Rate = Field(default=_CONSTANT, description="Factor on lr by server step.")


class AdagradOptimizer(Section):
    """FedAdagrad (Reddi et al. 2021)."""

    kind: Literal["adagrad"]
    lr: Positive = Field(default=0.01, description="Server learning rate.")
    beta1: Share = Field(default=0.0, description="Decay of the first moment.")
    eps: Positive = Field(default=1e-3, description="Added to the root of the second moment: adaptivity τ.")
    schedule: Rate = Field(default=_CONSTANT, description="Factor on lr by server step.")


class YogiOptimizer(Section):
    """FedYogi (Reddi et al. 2021)."""

    kind: Literal["yogi"]
    lr: Positive = Field(default=0.01, description="Server learning rate.")
    beta1: Share = Field(default=0.9, description="Decay of the first moment.")
    beta2: Share = Field(default=0.99, description="Decay of the second moment.")
    eps: Positive = Field(default=1e-3, description="Added to the root of the second moment: adaptivity τ.")
    schedule: Rate = Field(default=_CONSTANT, description="Factor on lr by server step.")


ServerOptimizer = Annotated[
    SgdOptimizer | AdamOptimizer | AdagradOptimizer | YogiOptimizer, Field(discriminator="kind")
]
_SGD = SgdOptimizer(kind="sgd")
_POLYNOMIAL = PolynomialStaleness(kind="polynomial")


class AggregationSection(Section):
    """What all rules of aggregation share."""

    server_optimizer: ServerOptimizer = Field(default=_SGD, description="Mean delta → next version.")
    delta_bound: Positive = Field(
        default=1000.0, description="L2 norm of a client delta beyond which it counts as diverged and becomes zero."
    )


class FedBuff(AggregationSection):
    """Buffered asynchronous aggregation (Nguyen et al. 2022)."""

    kind: Literal["fedbuff"]
    staleness: Staleness = Field(default=_POLYNOMIAL, description="Weight of an update by its staleness.")
    weighting: Weighting = Field(default=Weighting(kind="equal"), description="Weight of an update by its examples.")
    normalizer: Literal["mean", "sum"] = Field(
        default="mean", description="Whether the sum of the buffer is divided by the sum of the example weights."
    )


class FedAvg(AggregationSection):
    """Synchronous averaging (McMahan et al. 2017)."""

    kind: Literal["fedavg"]
    weighting: Weighting = Field(default=Weighting(kind="equal"), description="Weight of an update by its examples.")
    normalizer: Literal["mean", "sum"] = Field(
        default="mean", description="Whether the sum of the round is divided by the sum of the example weights."
    )


class FedAsync(AggregationSection):
    """A server step per arrival (Xie et al. 2019); buffer_goal is 1."""

    kind: Literal["fedasync"]
    form: Literal["delta", "mixing"] = Field(
        default="mixing", description="mixing averages models (the paper); delta applies start minus local weights."
    )
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="Mixing rate at staleness 0.")
    staleness: Staleness = Field(default=_POLYNOMIAL, description="Weight of an update by its staleness.")


Aggregation = Annotated[FedBuff | FedAvg | FedAsync, Field(discriminator="kind")]
