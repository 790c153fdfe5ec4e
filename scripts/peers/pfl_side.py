"""pfl-research 0.6.0: FedAvg on its SimulatedBackend; one process, or several under torchrun."""

from __future__ import annotations

import os
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from work import Clock, arguments, binary_loss, torch_model


class Rounds(TrainingProcessCallback):
    """Counts rounds; the first process says when to stop, for all."""

    def __init__(self, clock: Clock, cohort: int) -> None:
        self._clock, self._cohort = clock, cohort

    def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
        """A round is over."""
        del metrics, model, central_iteration
        flag = torch.tensor([float(self._clock.round(self._cohort))])
        if get_framework_module().distributed.world_size > 1:
            torch.distributed.broadcast(flag, 0)
        return bool(flag), Metrics()


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    workload, clock = options.workload, Clock(options)
    pool = {key: torch.from_numpy(values) for key, values in workload.arrays().items()}
    order = [key for key in ("x", "c", "y") if key in pool]
    loss_of, module = binary_loss(workload), torch_model(workload.name)
    module.loss = lambda *batch: loss_of(module(*batch[:-1]), batch[-1])
    module.metrics = lambda *batch: {}

    def client(number: int) -> PyTorchTensorDataset:
        return PyTorchTensorDataset(tuple(pool[key][number % workload.pool] for key in order), user_id=str(number))

    data = FederatedDataset(client, get_user_sampler("random", range(options.population)))
    FederatedAveraging().run(
        NNAlgorithmParams(10**9, evaluation_frequency=10**9, train_cohort_size=options.cohort, val_cohort_size=0),
        SimulatedBackend(data, data),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.lr, local_batch_size=workload.batch
        ),
        model_eval_params=None,
        callbacks=[Rounds(clock, options.cohort)],
        send_metrics_to_platform=False,
    )  # fmt: skip
    if get_framework_module().distributed.global_rank == 0:
        clock.tell()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # pfl leaves its process group open, and ends in an abort now and then
        os._exit(0)


if __name__ == "__main__":
    main()
