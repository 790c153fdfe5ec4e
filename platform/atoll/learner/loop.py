"""The faithful slow loop: one client at a time, an ordinary module and torch.optim.SGD; the reference for the lanes."""

from __future__ import annotations

import numpy as np
import torch

from atoll.learner.work import ClientWork, Gather, example_order
from atoll.messages import ModelVersion
from atoll.models import LaneModel, load_module

__all__ = ["LoopClient"]


class LoopClient:
    """Trains single clients as a plain PyTorch programmer would; used by tests and benchmarks only.

    The module and its optimizer's parameters are made once and refilled per client, which is kinder to the loop than a
    new module each time.

    Args:
        model: lane form of the model; its ordinary module is trained.
        gather: training examples.
        work: local SGD.
        seed: of the run.
    """

    def __init__(self, *, model: LaneModel, gather: Gather, work: ClientWork, seed: int) -> None:
        self._model, self._gather, self._work, self._seed = model, gather, work, seed
        self._module = model.module()

    def train(self, task_id: int, client_id: int, num_examples: int, start: ModelVersion) -> ModelVersion:
        """The client's delta, start − local, as a ModelVersion of the start's number."""
        work, module = self._work, load_module(self._module, self._model, start)
        parameters = list(module.parameters())
        before = [p.detach().clone() for p in parameters]
        lr = work.lr * work.schedule.factor(start.version)
        optimizer = torch.optim.SGD(parameters, lr, momentum=work.momentum, weight_decay=work.weight_decay)
        data = self._gather(np.array([client_id]), np.arange(num_examples)[None])
        examples = {name: torch.from_numpy(np.ascontiguousarray(value[0])) for name, value in data.items()}
        for epoch in range(work.epochs):
            order = example_order(self._seed, np.array([task_id]), np.array([num_examples]), epoch)[0]
            for begin in range(0, num_examples, work.batch_size):
                chosen = torch.from_numpy(order[begin : begin + work.batch_size])
                inputs = [examples[name][chosen] for name in ("x", "c") if name in examples]
                logits, labels = module(*inputs), examples["y"][chosen]
                if self._model.shape.task == "binary":
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
                else:
                    loss = torch.nn.functional.cross_entropy(logits, labels)
                if work.proximal_mu:
                    pull = sum(((p - b) ** 2).sum() for p, b in zip(parameters, before, strict=True))
                    loss = loss + 0.5 * work.proximal_mu * pull
                for group in optimizer.param_groups:
                    group["lr"] = lr * (len(chosen) / work.batch_size if work.short_batch_scaling else 1.0)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self._delta(module, start)

    def _delta(self, module: torch.nn.Module, start: ModelVersion) -> ModelVersion:
        state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
        local = np.concatenate([state[p.name].reshape(-1) for p in self._model.shape.parameters])
        tables = tuple(
            np.asarray(old) - state[table.name]
            for table, old in zip(self._model.shape.tables, start.tables, strict=True)
        )
        return ModelVersion(start.version, start.dense - local, tables)
