#!/usr/bin/env python3
"""The plain PyTorch loop, and the best kernels written by hand for each workload: engines without a simulator around.

No sampling, no metrics, no server optimizer: a client's rows are gathered, its local steps made, its delta added to a
sum. `--processes` processes of one thread each, started together. Prints one JSON line; called by bench_workloads.py.

    loop        one client after another, autograd, parameters and gradients each in one flat vector
    numpy       W1: batched matmul over 32 clients, backward by hand
    compiled    W1: torch.compile of vmap(grad) over 32 clients; W3: over 128, each with only its own embedding rows
    shared      W2: backward by hand; the dense layer is never built per client: x W + a low-rank term; one GEMM for all
    shared-bf16 the same with convolutions and matrix products in bfloat16
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from work import Workload, arguments, binary_loss, torch_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: row numbers [clients, examples] for the next block
Order = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Kernel:
    """Trains one block of clients per call, and has the sum of all deltas: dense parameters, then tables."""

    train: Callable[[], None]
    total: Sequence[Any]


def orders(workload: Workload, clients: int) -> Order:
    """Row numbers [clients, examples] of the pool, each client's in an order of its own; made before the clock runs."""
    draw, found = np.random.default_rng(os.getpid()), []
    for _ in range(64):
        ids = draw.integers(0, workload.pool, clients)
        order = draw.random((clients, workload.examples)).argsort(axis=1)
        found.append(ids[:, None] * workload.examples + order)
    turn = iter(range(1 << 62))
    return lambda: found[next(turn) % len(found)]


def flat_rows(workload: Workload) -> dict[str, np.ndarray]:
    return {key: values.reshape(-1, *values.shape[2:]) for key, values in workload.arrays().items()}


def loop(workload: Workload, order: Order, clients: int) -> Kernel:
    import torch

    del clients  # one
    module, loss_of = torch_model(workload.name), binary_loss(workload)
    own = list(module.parameters())
    flat = torch.cat([one.detach().reshape(-1) for one in own])
    slopes, begin = torch.zeros_like(flat), 0
    for one in own:
        place = slice(begin, begin + one.numel())
        one.data, one.grad = flat[place].view_as(one), slopes[place].view_as(one)
        begin += one.numel()
    first, total = flat.clone(), torch.zeros_like(flat)
    rows = {key: torch.from_numpy(values) for key, values in flat_rows(workload).items()}
    inputs = [key for key in ("x", "c") if key in rows]

    def train() -> None:
        index = torch.from_numpy(order()[0])
        flat.copy_(first)
        for step in index.split(workload.batch):
            slopes.zero_()
            loss_of(module(*(rows[key][step] for key in inputs)), rows["y"][step]).backward()
            flat.add_(slopes, alpha=-workload.lr)
        total.add_(flat).sub_(first)

    return Kernel(train, [total])


def numpy_mlp(workload: Workload, order: Order, clients: int) -> Kernel:
    rows, batch = flat_rows(workload), workload.batch
    first = [np.ascontiguousarray(np.atleast_2d(one.detach().numpy().T)) for one in torch_model("W1").parameters()]
    total = [np.zeros_like(one) for one in first]
    own = [np.empty((clients, *one.shape), dtype=np.float32) for one in first]
    slopes = [np.empty_like(one) for one in own]
    answers = np.eye(10, dtype=np.float32)[rows["y"]]
    rate = np.float32(workload.lr)

    def train() -> None:
        index = order()
        for mine, one in zip(own, first, strict=True):
            mine[:] = one
        for begin in range(0, workload.examples, batch):
            at = index[:, begin : begin + batch]
            x, y = rows["x"][at], answers[at]
            hidden = x @ own[0]
            hidden += own[1]
            np.maximum(hidden, 0, out=hidden)
            out = hidden @ own[2]
            out += own[3]
            out -= out.max(axis=-1, keepdims=True)
            np.exp(out, out=out)
            out /= out.sum(axis=-1, keepdims=True)
            out -= y
            out *= rate / np.float32(batch)
            back = out @ own[2].swapaxes(1, 2)
            back *= hidden > 0
            np.matmul(hidden.swapaxes(1, 2), out, out=slopes[2])
            np.matmul(x.swapaxes(1, 2), back, out=slopes[0])
            np.sum(out, axis=1, keepdims=True, out=slopes[3])
            np.sum(back, axis=1, keepdims=True, out=slopes[1])
            for mine, slope in zip(own, slopes, strict=True):
                mine -= slope
        for added, mine, one in zip(total, own, first, strict=True):
            added += mine.sum(axis=0) - clients * one

    return Kernel(train, [total[0].T, total[1], total[2].T, total[3]])


def compiled_mlp(workload: Workload, order: Order, clients: int) -> Kernel:
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    module = torch_model(workload.name)
    first = {name: one.detach() for name, one in module.named_parameters()}
    rows = {key: torch.from_numpy(values) for key, values in flat_rows(workload).items()}
    answers = functional.one_hot(rows["y"], 10).float()

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        return -(functional_call(module, params, (x,)).log_softmax(-1) * y).sum(-1).mean()

    def step(params: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
        slopes = vmap(grad(loss))(params, x, y)
        return {name: one - workload.lr * slopes[name] for name, one in params.items()}

    fast = torch.compile(step, dynamic=False)
    stacked = {name: one.expand(clients, *one.shape).contiguous() for name, one in first.items()}
    total = {name: torch.zeros_like(one) for name, one in first.items()}

    def train() -> None:
        params = stacked
        for at in torch.from_numpy(order()).split(workload.batch, dim=1):
            params = fast(params, rows["x"][at], answers[at])
        for name, one in params.items():
            total[name] += one.sum(0) - clients * first[name]

    return Kernel(train, list(total.values()))


def compiled_dlrm(workload: Workload, order: Order, clients: int) -> Kernel:
    import torch
    from torch.func import grad, vmap
    from torch.nn import functional

    module = torch_model(workload.name)
    tables = [one.weight.detach() for one in module.tables]
    first = {name: one.detach() for name, one in module.named_parameters() if not name.startswith("tables")}
    rows = {key: torch.from_numpy(values) for key, values in flat_rows(workload).items()}
    answers = rows["y"].float()

    def loss(params: dict[str, Any], x: Any, local: Any, y: Any) -> Any:
        u = functional.linear(x, params["bottom.weight"], params["bottom.bias"]).relu()
        # a look-up among twenty rows is a product with a one-hot matrix: its backward is one too, not a scatter
        v, w = (local[:, at] @ params[f"rows.{at}"] for at in range(2))
        dots = torch.stack([(u * v).sum(-1), (u * w).sum(-1), (v * w).sum(-1)], dim=-1)
        hidden = functional.linear(torch.cat([u, dots], -1), params["top.0.weight"], params["top.0.bias"]).relu()
        found = functional.linear(hidden, params["top.2.weight"], params["top.2.bias"]).squeeze(-1)
        return functional.binary_cross_entropy_with_logits(found, y)

    def step(params: dict[str, Any], x: Any, local: Any, y: Any) -> dict[str, Any]:
        slopes = vmap(grad(loss))(params, x, local, y)
        return {name: one - workload.lr * slopes[name] for name, one in params.items()}

    def own_rows(codes: Any) -> Any:
        """Which of a client's rows each example reads: the first example with its code. [C, E, 2, E] one-hot."""
        same = codes.transpose(1, 2).unsqueeze(-1) == codes.transpose(1, 2).unsqueeze(-2)
        places = same.to(torch.uint8).argmax(-1)
        return functional.one_hot(places, workload.examples).to(torch.float32).transpose(1, 2)

    fast, place = torch.compile(step, dynamic=False), torch.compile(own_rows, dynamic=False)
    stacked = {name: one.expand(clients, *one.shape).contiguous() for name, one in first.items()}
    total = {name: torch.zeros_like(one) for name, one in first.items()}
    totals = [torch.zeros_like(table) for table in tables]

    def train() -> None:
        index = torch.from_numpy(order())
        codes = rows["c"][index]
        before = [table[codes[..., at]] for at, table in enumerate(tables)]
        params, local = stacked | {f"rows.{at}": one for at, one in enumerate(before)}, place(codes)
        for begin in range(0, workload.examples, workload.batch):
            at = index[:, begin : begin + workload.batch]
            params = fast(params, rows["x"][at], local[:, begin : begin + workload.batch], answers[at])
        for name, one in first.items():
            total[name] += params[name].sum(0) - clients * one
        for at, (added, one) in enumerate(zip(totals, before, strict=True)):
            added.index_add_(0, codes[..., at].reshape(-1), (params[f"rows.{at}"] - one).reshape(-1, 16))

    return Kernel(train, [*totals, *total.values()])


class SharedDense:
    """W2, a few clients at a time: convolutions client by client, the large dense layer as x W + a low-rank term.

    After steps s with inputs a_s and slopes d_s a client's layer is W − r Σ d_sᵀ a_s. So a Wᵀ becomes one product with
    the common W for all clients, minus r Σ (a a_sᵀ) d_s; and the sum of all deltas is one product at the end.
    """

    def __init__(self, workload: Workload, order: Order, clients: int, dtype: Any) -> None:
        import torch

        self.workload, self.clients, self.dtype, self._torch = workload, clients, dtype, torch
        module = torch_model(workload.name)
        self.first = [one.detach() for one in module.parameters()]
        self.dense = self.first[4].to(dtype)
        rows = {key: torch.from_numpy(values) for key, values in flat_rows(workload).items()}
        # as pictures are best kept for convolutions: channels last
        self.x, self.y = rows["x"].to(dtype).to(memory_format=torch.channels_last), rows["y"]
        self.total = [torch.zeros_like(one) for one in self.first]
        self.order = order
        steps, batch = workload.examples // workload.batch, workload.batch
        self.inputs = torch.empty(clients, steps * batch, 12544, dtype=dtype)
        self.slopes = torch.empty(clients, steps * batch, 128, dtype=dtype)

    def train(self) -> None:
        """Trains `clients` clients."""
        torch, batch = self._torch, self.workload.batch
        index = torch.from_numpy(self.order())
        own = [[one.clone() for at, one in enumerate(self.first) if at != 4] for _ in range(self.clients)]
        for begin in range(0, self.workload.examples, batch):
            step = slice(begin, begin + batch)
            kept = [self._forward(mine, index[number, step]) for number, mine in enumerate(own)]
            for number, (_, _, _, flat) in enumerate(kept):
                self.inputs[number, step] = flat
            common = self.inputs[:, step].reshape(-1, 12544) @ self.dense.T
            backs = [
                self._head(mine, number, step, common[number * batch : (number + 1) * batch], index[number, step])
                for number, mine in enumerate(own)
            ]
            down = self.slopes[:, step].reshape(-1, 128) @ self.dense
            for number, (mine, one, dots) in enumerate(zip(own, kept, backs, strict=True)):
                slope = down[number * batch : (number + 1) * batch]
                if begin:
                    slope = slope.addmm_(dots, self.inputs[number, :begin], alpha=-self.workload.lr)
                self._backward(mine, index[number, step], one, slope)
        slopes, inputs = self.slopes.reshape(-1, 128), self.inputs.reshape(-1, 12544)
        self.total[4].add_(slopes.T @ inputs, alpha=-self.workload.lr)
        small = [at for at in range(len(self.first)) if at != 4]
        for place, at in enumerate(small):
            self.total[at] += sum(mine[place] for mine in own) - self.clients * self.first[at]

    def _forward(self, own: list[Any], at: Any) -> tuple[Any, Any, Any, Any]:
        aten, dtype = self._torch.ops.aten, self.dtype
        x = self._torch.conv2d(self.x[at], own[0].to(dtype), own[1].to(dtype)).relu_()
        z = self._torch.conv2d(x, own[2].to(dtype), own[3].to(dtype)).relu_()
        pooled, where = aten.max_pool2d_with_indices(z, [2, 2], [2, 2])
        return x, z, where, pooled.contiguous().reshape(len(at), -1)

    def _head(self, own: list[Any], number: int, step: slice, common: Any, at: Any) -> Any:
        """The layers behind; returns what the large layer's input slopes still need of earlier steps."""
        torch, rate, begin = self._torch, self.workload.lr, step.start
        hidden = common.float() + own[4]
        if begin:
            near = self.inputs[number, step] @ self.inputs[number, :begin].T
            hidden.addmm_(near.float(), self.slopes[number, :begin].float(), alpha=-rate)
        hidden.relu_()
        out = torch.addmm(own[6], hidden, own[5].T).softmax(-1)
        out[torch.arange(len(at)), self.y[at]] -= 1
        out /= len(at)
        back = (out @ own[5]) * (hidden > 0)
        own[5].addmm_(out.T, hidden, alpha=-rate)
        own[6].sub_(out.sum(0), alpha=rate)
        own[4].sub_(back.sum(0), alpha=rate)
        self.slopes[number, step] = back
        return self.slopes[number, step] @ self.slopes[number, :begin].T if begin else None

    def _backward(self, own: list[Any], at: Any, kept: tuple[Any, Any, Any, Any], slope: Any) -> None:
        torch, rate, dtype = self._torch, self.workload.lr, self.dtype
        x, z, where, _ = kept
        aten, fixed = torch.ops.aten, ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        slope = slope.reshape(len(at), 64, 14, 14).contiguous(memory_format=torch.channels_last)
        slope = aten.max_pool2d_with_indices_backward(slope, z, [2, 2], [2, 2], [0, 0], [1, 1], False, where)
        slope = aten.threshold_backward(slope, z, 0)
        weight = own[2].to(dtype)
        below, by_weight, by_bias = aten.convolution_backward(slope, x, weight, [64], *fixed, [True, True, True])
        own[2].sub_(by_weight, alpha=rate)
        own[3].sub_(by_bias, alpha=rate)
        below = aten.threshold_backward(below, x, 0)
        weight = own[0].to(dtype)
        _, by_weight, by_bias = aten.convolution_backward(below, self.x[at], weight, [32], *fixed, [False, True, True])
        own[0].sub_(by_weight, alpha=rate)
        own[1].sub_(by_bias, alpha=rate)


def shared(workload: Workload, order: Order, clients: int, *, is_half: bool = False) -> Kernel:
    import torch

    kernel = SharedDense(workload, order, clients, torch.bfloat16 if is_half else torch.float32)
    return Kernel(kernel.train, kernel.total)


def config_loop(name: str) -> Kernel:
    """The loop of `atoll.learner.LoopClient` on the data, model and client work of one of atoll's configs."""
    import atoll.experiment.modelling as modelling
    from atoll import rng
    from atoll.data import open_data
    from atoll.experiment import as_spec
    from atoll.experiment.wiring import source_of
    from atoll.learner import LoopClient

    spec = as_spec(CONFIGS / f"fedbuff_{name}.yaml")
    data = open_data(source_of(spec))
    model, first = modelling.lane_model_of(spec, data.shape), modelling.first_version(spec, data.shape)
    client = LoopClient(model=model, gather=data.gather, work=modelling.client_work_of(spec), seed=spec.seed)
    draw, total = rng.generator(os.getpid(), "bench"), [np.zeros_like(first.dense)]

    def train() -> None:
        number = int(draw.integers(0, data.num_clients))
        size = int(data.num_examples(np.array([number]))[0])
        np.add(total[0], client.train(number, number, size, first).dense, out=total[0])

    return Kernel(train, total)


#: workload → kernel → clients of a block, what makes it
KERNELS: dict[str, dict[str, tuple[int, Callable[[Workload, Order, int], Kernel]]]] = {
    "W1": {"loop": (1, loop), "numpy": (32, numpy_mlp), "compiled": (32, compiled_mlp)},
    "W2": {"loop": (1, loop), "shared": (4, shared), "shared-bf16": (4, partial(shared, is_half=True))},
    "W3": {"loop": (1, loop), "compiled": (128, compiled_dlrm)},
}


def work(options: argparse.Namespace, ready: Any, found: Any) -> None:
    """One process: clients per second once all are ready."""
    import torch

    torch.set_num_threads(1)
    if options.config:
        clients, kernel = 1, config_loop(options.config)
    else:
        clients, make = KERNELS[options.workload.name][options.kernel]
        kernel = make(options.workload, orders(options.workload, clients), clients)
    with torch.no_grad() if options.kernel != "loop" else torch.enable_grad():
        for _ in range(3):
            kernel.train()
        ready.wait()
        began, blocks = time.monotonic(), 0
        while (spent := time.monotonic() - began) < options.seconds:
            kernel.train()
            blocks += 1
    found.put((blocks * clients / spent, began))


def main() -> None:
    options = arguments(
        __doc__,
        ("--kernel", {"default": "loop"}),
        ("--processes", {"type": int, "default": 2}),
        ("--config", {"choices": ["flights", "shakespeare"], "help": "the loop on one of atoll's configs instead"}),
    )
    spawn = multiprocessing.get_context("spawn")
    ready, found = spawn.Barrier(options.processes), spawn.Queue()
    processes = [spawn.Process(target=work, args=(options, ready, found)) for _ in range(options.processes)]
    for one in processes:
        one.start()
    results = [found.get() for _ in processes]
    for one in processes:
        one.join()
    began = min(moment for _, moment in results)
    print(json.dumps({"clients_per_s": sum(rate for rate, _ in results), "start_s": began - options.began}))


if __name__ == "__main__":
    main()
