"""FedJAX 0.0.17: FedAvg of `fedjax.algorithms.fed_avg` on its jit backend, JAX's own threads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.tree_map = jax.tree_util.tree_map  # current JAX has dropped the name that FedJAX calls

import fedjax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from work import Clock, Workload, arguments  # noqa: E402


def dense(draw: np.random.Generator, inputs: int, outputs: int) -> dict[str, Any]:
    bound = 1 / np.sqrt(inputs)
    weight = draw.uniform(-bound, bound, (inputs, outputs)).astype(np.float32)
    return {"w": jnp.asarray(weight), "b": jnp.zeros(outputs)}


def kernel(draw: np.random.Generator, inputs: int, outputs: int) -> dict[str, Any]:
    weight = draw.uniform(-0.1, 0.1, (3, 3, inputs, outputs)).astype(np.float32)
    return {"w": jnp.asarray(weight), "b": jnp.zeros(outputs)}


def first_params(workload: Workload) -> dict[str, Any]:
    draw = np.random.default_rng(2)
    if workload.name == "W1":
        return {"1": dense(draw, 64, 64), "2": dense(draw, 64, 10)}
    if workload.name == "W2":
        layers = {"1": kernel(draw, 3, 32), "2": kernel(draw, 32, 64)}
        return layers | {"3": dense(draw, 12544, 128), "4": dense(draw, 128, 10)}
    tables = [jnp.asarray(0.1 * draw.standard_normal((size, 16), dtype=np.float32)) for size in workload.codes]
    return {"tables": tables, "bottom": dense(draw, 18, 16), "1": dense(draw, 19, 64), "2": dense(draw, 64, 1)}


def layer(params: dict[str, Any], x: Any) -> Any:
    return x @ params["w"] + params["b"]


def conv(params: dict[str, Any], x: Any) -> Any:
    names = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "VALID", dimension_numbers=names)
    return jax.nn.relu(found + params["b"])


def logits(name: str, params: dict[str, Any], batch: dict[str, Any]) -> Any:
    x = batch["x"]
    if name == "W1":
        return layer(params["2"], jax.nn.relu(layer(params["1"], x)))
    if name == "W2":
        x = conv(params["2"], conv(params["1"], x.transpose(0, 2, 3, 1)))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(layer(params["3"], x.reshape(len(x), -1)))
        return layer(params["4"], x)
    u = jax.nn.relu(layer(params["bottom"], x))
    v, w = (table[batch["c"][:, at]] for at, table in enumerate(params["tables"]))
    dots = jnp.stack([(u * v).sum(-1), (u * w).sum(-1), (v * w).sum(-1)], axis=-1)
    return layer(params["2"], jax.nn.relu(layer(params["1"], jnp.concatenate([u, dots], axis=-1))))[:, 0]


def main() -> None:
    options = arguments(__doc__)
    workload, clock = options.workload, Clock(options)
    arrays = workload.arrays()
    pool = [
        fedjax.ClientDataset({key: values[number] for key, values in arrays.items()}) for number in range(workload.pool)
    ]

    def loss(params: dict[str, Any], batch: dict[str, Any], rng: Any) -> Any:
        del rng
        found = logits(workload.name, params, batch)
        if workload.outputs == 1:
            return jnp.mean(jnp.logaddexp(0, found) - found * batch["y"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(found), batch["y"][:, None], axis=1)
        return -jnp.mean(picked)

    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=workload.batch, num_epochs=1)
    sgd = fedjax.optimizers.sgd
    algorithm = fed_avg.federated_averaging(jax.grad(loss), sgd(workload.lr), sgd(1.0), batches)
    state, draw, key = algorithm.init(first_params(workload)), np.random.default_rng(3), jax.random.PRNGKey(0)
    while not clock.is_over:
        ids = draw.choice(options.population, options.cohort, replace=False)
        key, *keys = jax.random.split(key, options.cohort + 1)
        cohort = [(str(one).encode(), pool[one % workload.pool], part) for one, part in zip(ids, keys, strict=True)]
        state, _ = algorithm.apply(state, cohort)
        jax.block_until_ready(state.params)
        clock.round(options.cohort)
    clock.tell()


if __name__ == "__main__":
    main()
