"""Flower 1.41.0 with its simulation extra: FedAvg on two Ray actors; `--api legacy` (start_simulation) or `messages`.

Model, data and optimizer are made once per actor: kinder than the
documentation, which makes them for every client.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

# actors import this module by its name
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import flwr
import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from work import WORKLOADS, Clock, arguments, binary_loss, torch_model

CPUS = {"num_cpus": 1, "num_gpus": 0}


class Trainer:
    """What an actor keeps."""

    def __init__(self, name: str) -> None:
        torch.set_num_threads(1)
        self.workload, self.module = WORKLOADS[name], torch_model(name)
        self._pool = {key: torch.from_numpy(values) for key, values in self.workload.arrays().items()}
        self._inputs = [key for key in ("x", "c") if key in self._pool]
        self._sgd = torch.optim.SGD(self.module.parameters(), lr=self.workload.lr)
        self._loss = binary_loss(self.workload)

    def train(self, number: int) -> None:
        """One epoch of a client, from the weights that the module has."""
        one = {key: values[number % self.workload.pool] for key, values in self._pool.items()}
        for rows in torch.randperm(self.workload.examples).split(self.workload.batch):
            self._sgd.zero_grad()
            self._loss(self.module(*(one[key][rows] for key in self._inputs)), one["y"][rows]).backward()
            self._sgd.step()


@functools.cache
def trainer(name: str) -> Trainer:
    return Trainer(name)


class Client(flwr.client.NumPyClient):
    """A client of the legacy interface."""

    def __init__(self, name: str, number: int) -> None:
        self._trainer, self._number = trainer(name), number

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Given weights in, trained weights out."""
        del config
        own = list(self._trainer.module.parameters())
        for mine, given in zip(own, parameters, strict=True):
            mine.data.copy_(torch.from_numpy(given))
        self._trainer.train(self._number)
        return [mine.detach().numpy() for mine in own], self._trainer.workload.examples, {}


def client_of(name: str, context: Any) -> Any:
    return Client(name, int(context.node_config["partition-id"])).to_client()


def legacy(options: Any) -> None:
    clock, cohort, population = Clock(options), options.cohort, options.population

    class Server(flwr.server.Server):
        """FedAvg rounds until the clock is over, nothing else."""

        def fit(self, num_rounds: int, timeout: float | None) -> tuple[Any, float]:
            self.parameters = self._get_initial_parameters(server_round=0, timeout=timeout)
            while not clock.is_over:
                self.parameters, _, (results, failures) = self.fit_round(server_round=1, timeout=timeout)
                if failures or len(results) != cohort:
                    raise RuntimeError(f"{len(results)} results, failures: {failures[:1]}")
                clock.round(cohort)
            return flwr.server.History(), 0.0

    first = [one.detach().numpy() for one in torch_model(options.workload.name).parameters()]
    strategy = flwr.server.strategy.FedAvg(
        fraction_fit=1e-9, min_fit_clients=cohort, min_available_clients=population, fraction_evaluate=0.0,
        min_evaluate_clients=0, initial_parameters=flwr.common.ndarrays_to_parameters(first),
    )  # fmt: skip
    manager = flwr.server.SimpleClientManager()
    flwr.simulation.start_simulation(
        client_fn=functools.partial(client_of, options.workload.name), num_clients=population, client_resources=CPUS,
        server=Server(client_manager=manager, strategy=strategy), client_manager=manager,
        config=flwr.server.ServerConfig(num_rounds=1), ray_init_args={"num_cpus": 2, "include_dashboard": False},
    )  # fmt: skip
    clock.tell()


def answer(name: str, message: Message, context: Context) -> Message:
    mine = trainer(name)
    mine.module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    mine.train(int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": mine.workload.examples})
    content = RecordDict({"arrays": ArrayRecord(mine.module.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Strict(FedAvg):
    """FedAvg that takes no failure."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """As FedAvg does."""
        replies = list(replies)
        if len(replies) != self.min_train_nodes or any(one.has_error() for one in replies):
            raise RuntimeError(f"{len(replies)} replies, some with errors")
        return super().aggregate_train(server_round, replies)


def messages(options: Any) -> None:
    clock, server, client = Clock(options), ServerApp(), ClientApp()
    client.train()(functools.partial(answer, options.workload.name))

    @server.main()
    def main(grid: Any, context: Context) -> None:
        del context
        strategy = Strict(
            fraction_train=1e-9, min_train_nodes=options.cohort, min_available_nodes=options.population,
            fraction_evaluate=0.0,
        )  # fmt: skip
        arrays = ArrayRecord(torch_model(options.workload.name).state_dict())
        while not clock.is_over:
            arrays = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=1).arrays
            clock.round(options.cohort)
        clock.tell()

    config = {"init_args": {"num_cpus": 2, "include_dashboard": False}, "client_resources": CPUS}
    flwr.simulation.run_simulation(server, client, options.population, backend_config=config)


def main() -> None:
    options = arguments(__doc__, ("--api", {"choices": ["legacy", "messages"], "default": "legacy"}))
    {"legacy": legacy, "messages": messages}[options.api](options)


if __name__ == "__main__":
    import flower_side

    flower_side.main()
