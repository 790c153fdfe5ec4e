"""FLSim 0.1.0: FedBuff on its AsyncTrainer, one process; `--concurrency` devices in flight, K is `--cohort`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

# what dataclasses of their own have is imported before the patch below
import hydra  # noqa: F401
import numpy as np
import omegaconf  # noqa: F401
import opacus  # noqa: F401
import pandas as pd  # noqa: F401
import torch
from work import Clock, arguments, binary_loss, torch_model

_PLAIN = dataclasses.dataclass


def _hashed(cls: type | None = None, **options: Any) -> Any:
    """FLSim's defaults are instances of its own dataclasses; since Python 3.11 they must have a hash for that."""
    return _PLAIN(cls, **({"unsafe_hash": True} | options))


dataclasses.dataclass = _hashed

from flsim.clients.base_client import ClientConfig  # noqa: E402
from flsim.data.data_provider import FLUserDataFromList, IFLDataProvider  # noqa: E402
from flsim.interfaces.model import IFLModel  # noqa: E402
from flsim.optimizers.async_aggregators import FedAvgWithLRFedBuffAggregatorConfig  # noqa: E402
from flsim.optimizers.local_optimizers import LocalOptimizerSGDConfig  # noqa: E402
from flsim.trainers.async_trainer import AsyncTrainer  # noqa: E402
from flsim.utils.async_trainer.training_event_generator import (  # noqa: E402
    AsyncTrainingEventGeneratorConfig,
    ConstantAsyncTrainingStartTimeDistrConfig,
)
from flsim.utils.simple_batch_metrics import FLBatchMetrics  # noqa: E402
from flsim.utils.timing.training_duration_distribution import PerUserHalfNormalDurationDistributionConfig  # noqa: E402

dataclasses.dataclass = _PLAIN

#: mean of a half-normal law with deviation 1
HALF_NORMAL_MEAN = float(np.sqrt(2 / np.pi))


class Over(Exception):
    """Enough was measured."""


class Trainer(AsyncTrainer):
    """Tells each server step; neither metrics nor evaluation."""

    told: Callable[[], None]

    def _global_update_done(self) -> None:
        self.told()


class Model(IFLModel):
    """The workload's module as FLSim wants it."""

    def __init__(self, module: torch.nn.Module, loss: Any) -> None:
        self._module, self._loss = module, loss

    def fl_forward(self, batch: dict[str, torch.Tensor]) -> FLBatchMetrics:
        """The loss of a batch."""
        inputs = [batch[key] for key in ("x", "c") if key in batch]
        out = self._module(*inputs)
        return FLBatchMetrics(
            loss=self._loss(out, batch["y"]), num_examples=len(batch["y"]), predictions=out, targets=batch["y"],
            model_inputs=inputs,
        )  # fmt: skip

    def fl_create_training_batch(self, **kwargs: Any) -> Any:
        """The batch as it is."""
        return kwargs["batch"]

    def fl_get_module(self) -> torch.nn.Module:
        """The module."""
        return self._module

    def fl_cuda(self) -> None:
        """Never."""

    def get_eval_metrics(self, batch: dict[str, torch.Tensor]) -> FLBatchMetrics:
        """As for training."""
        return self.fl_forward(batch)

    def get_num_examples(self, batch: dict[str, torch.Tensor]) -> int:
        """Of a batch."""
        return len(batch["y"])


class Pool(IFLDataProvider):
    """Client `id` has the batches of `id % pool`."""

    def __init__(self, users: list[FLUserDataFromList], population: int) -> None:
        self._users, self._population = users, population

    def train_user_ids(self) -> Any:
        """All of them."""
        return range(self._population)

    def num_train_users(self) -> int:
        """The population."""
        return self._population

    def get_train_user(self, user_index: int) -> FLUserDataFromList:
        """Made on demand."""
        return self._users[user_index % len(self._users)]

    def train_users(self) -> Iterator[FLUserDataFromList]:
        """All of them."""
        return map(self.get_train_user, range(self._population))

    eval_users = test_users = train_users


def main() -> None:
    options = arguments(__doc__, ("--concurrency", {"type": int, "default": 1000}))
    torch.set_num_threads(1)
    workload, clock = options.workload, Clock(options)
    pool = {key: torch.from_numpy(values) for key, values in workload.arrays().items()}
    model = Model(torch_model(workload.name), binary_loss(workload))
    steps = [slice(at, at + workload.batch) for at in range(0, workload.examples, workload.batch)]
    users = [
        FLUserDataFromList([{key: values[one, step] for key, values in pool.items()} for step in steps], model)
        for one in range(workload.pool)
    ]
    # one device starts per second and trains for `concurrency` seconds in the mean
    timing = AsyncTrainingEventGeneratorConfig(
        training_start_time_distribution=ConstantAsyncTrainingStartTimeDistrConfig(training_rate=1.0),
        duration_distribution_generator=PerUserHalfNormalDurationDistributionConfig(
            training_duration_sd=options.concurrency / HALF_NORMAL_MEAN, training_duration_min=1e-3
        ),
    )
    trainer = Trainer(
        model=model, epochs=1e9, do_eval=False, report_train_metrics=False, eval_epoch_frequency=1e9,
        client=ClientConfig(epochs=1, optimizer=LocalOptimizerSGDConfig(lr=workload.lr)),
        aggregator=FedAvgWithLRFedBuffAggregatorConfig(lr=1.0, buffer_size=options.cohort),
        training_event_generator=timing,
    )  # fmt: skip

    def told() -> None:
        if clock.round(options.cohort):
            raise Over

    trainer.told = told
    try:
        trainer.train(Pool(users, options.population), None, options.population)
    except Over:
        clock.tell()


if __name__ == "__main__":
    main()
