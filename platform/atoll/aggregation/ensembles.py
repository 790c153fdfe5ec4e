"""Over-archs: one prediction out of what the leaves of an ensemble say; fitted and applied without torch.

Every kind is fitted by a convex or keyed optimisation on rows in canonical order and on one thread, so that the bits
depend neither on the order of rows nor on the number of cores.

Shape legend: R rows, N leaves, K numbers that a leaf says per row (1: its logit), H units of a layer.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import Problem, SpecError

__all__ = [
    "Logistic",
    "Mean",
    "Median",
    "MlpOver",
    "OverArch",
    "OverArchSettings",
    "WeightedMean",
    "fit",
]

F64 = npt.NDArray[np.float64]
Kind = Literal["mean", "median", "weighted_mean", "logistic", "mlp"]
#: weight [out, in] and bias [out]
Layer = tuple[F64, F64]

_NEWTON_STEPS, _MLP_STEPS, _SIMPLEX_STEPS = 200, 300, 1000
#: Newton's decrement, as a share of the objective, below which there is nothing left to gain in double precision.
_DECREMENT = 1e-14


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of the leaves' logits."""


@dataclass(frozen=True, slots=True)
class Median:
    """Median of the leaves' logits."""


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """Mean of the leaves' logits with weights, at least 0 and of sum 1, of least log loss."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression (Wolpert 1992, "Stacked generalization"): least Σ log loss + l2 / 2 · |weights|².

    Attributes:
        l2: > 0; on weights of standardised inputs, the intercept is free.
    """

    l2: float = 1.0


@dataclass(frozen=True, slots=True)
class MlpOver:
    """A small ReLU network, from a keyed start: Σ log loss + l2 / 2 · |weights|².

    Attributes:
        hidden: units of each hidden layer, at least one layer.
        l2: > 0; on weights of standardised inputs, biases are free.
    """

    hidden: tuple[int, ...] = (16,)
    l2: float = 1.0


OverArchSettings = Mean | Median | WeightedMean | Logistic | MlpOver


@dataclass(frozen=True, eq=False)
class OverArch:
    """A function from what the leaves say to logits.

    Attributes:
        kind: mean, median, weighted_mean, logistic or mlp.
        layers: logistic and mlp: (weight [out, in], bias [out]) each, float64, on inputs as the leaves give them, leaf
            by leaf; ReLU between layers. Else ().
        weights: weighted_mean: float64 [N], at least 0, sum 1. Else [0].
    """

    kind: Kind
    layers: tuple[Layer, ...] = ()
    weights: F64 = field(default_factory=lambda: np.empty(0))

    def apply(self, z: F64) -> F64:
        """Logits float64 [R] from z [R, N, K]; K is 1 for means and medians, which give a sole leaf's own bits.

        Purity: pure.
        """
        if self.kind in ("logistic", "mlp"):
            return _through(self.layers, z.reshape(len(z), z.shape[1] * z.shape[2]))
        logits = _logits(z)
        if self.kind == "weighted_mean":
            return logits @ self.weights
        if logits.shape[1] == 1:
            return logits[:, 0].copy()
        found: F64 = logits.mean(axis=1) if self.kind == "mean" else np.median(logits, axis=1)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of kind and numbers: equal digests are equal functions."""
        content = hashlib.sha256(self.kind.encode())
        for name, array in self.arrays().items():
            content.update(f";{name}{array.shape}:".encode())
            content.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return content.hexdigest()

    def arrays(self) -> dict[str, F64]:
        """What to store beside `kind`: name → float64 array; nothing for mean and median."""
        found = {}
        for index, (weight, bias) in enumerate(self.layers):
            found[f"layer{index}.weight"], found[f"layer{index}.bias"] = weight, bias
        return found | ({"weights": self.weights} if self.kind == "weighted_mean" else {})

    @classmethod
    def from_arrays(cls, kind: Kind, arrays: Mapping[str, F64]) -> OverArch:
        """The over-arch whose `arrays()` these are, bit for bit.

        Raises:
            KeyError: an array is missing.
        """
        if kind == "weighted_mean":
            return cls(kind, weights=arrays["weights"])
        count = sum(name.endswith(".weight") for name in arrays)
        return cls(kind, tuple((arrays[f"layer{i}.weight"], arrays[f"layer{i}.bias"]) for i in range(count)))


def fit(settings: OverArchSettings, z: F64, y: npt.NDArray[np.int64], seed: int) -> OverArch:
    """Fits an over-arch; means and medians look at no rows.

    Args:
        settings: kind and penalties.
        z: float64 [R, N, K], what each leaf says of each row; K is 1 except for Logistic and MlpOver.
        y: int64 [R], labels 0 and 1.
        seed: names the start of MlpOver; the others have no chance in them.

    Guarantees: the same bits for the same rows in any order, for any number of cores. Logistic and WeightedMean are the
    global optimum to about 1e-7; MlpOver goes 300 steps at most
    towards a local one.

    Raises:
        SpecError: no rows, one label only, leaves that say NaN or infinity; all problems, with counts.

    Purity: pure.
    """
    if isinstance(settings, Mean | Median):
        return OverArch("mean" if isinstance(settings, Mean) else "median")
    if problems := _row_problems(z, y):
        raise SpecError(problems)
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=1):
        if isinstance(settings, WeightedMean):
            logits, labels = _canonical(_logits(z), y)
            return OverArch("weighted_mean", weights=_simplex_weights(logits, labels))
        inputs, labels = _canonical(_flat(z), y)
        mean, std = inputs.mean(axis=0), inputs.std(axis=0)
        std = np.where(std > 0, std, 1.0)
        inputs = (inputs - mean) / std
        if isinstance(settings, Logistic):
            return OverArch("logistic", _folded((_logistic(inputs, labels, settings.l2),), mean, std))
        return OverArch("mlp", _folded(_mlp(inputs, labels, settings, seed), mean, std))


def _logits(z: F64) -> F64:
    """The leaves' logits [R, N]."""
    if z.ndim != 3 or z.shape[2] != 1:
        raise ValueError(f"z has shape {z.shape}; means and medians take [rows, leaves, 1]")
    return z[:, :, 0]


def _flat(z: F64) -> F64:
    """All that the leaves say [R, N · K], leaf by leaf."""
    return z.reshape(len(z), z.shape[1] * z.shape[2])


def _through(layers: tuple[Layer, ...], inputs: F64) -> F64:
    for index, (weight, bias) in enumerate(layers):
        inputs = (inputs if index == 0 else np.maximum(inputs, 0.0)) @ weight.T + bias
    return inputs[:, 0]


def _row_problems(z: F64, y: npt.NDArray[np.int64]) -> list[Problem]:
    place, positive = "ensemble.fit", int((y == 1).sum())
    if not len(y):
        hint = "Set more aside: evaluation.server_share, evaluation.split"
        return [Problem(place, "no rows", "rows of both labels to fit the over-arch on", hint=hint)]
    problems = []
    if positive in (0, len(y)):
        got = f"{len(y)} rows, {positive} of label 1 and {len(y) - positive} of label 0"
        problems.append(Problem(place, got, "rows of both labels", "The over-arch learns to tell them apart"))
    wrong = ~np.isfinite(z)
    if wrong.any():
        bad = np.flatnonzero(wrong.any(axis=(0, 2))).tolist()
        got = f"NaN or infinity in {int(wrong.any(axis=(1, 2)).sum())} of {len(y)} rows, said by leaves {bad}"
        problems.append(Problem(place, got, "finite numbers", "Such a leaf has diverged", "lower its client.lr"))
    return problems


def _canonical(inputs: F64, y: npt.NDArray[np.int64]) -> tuple[F64, F64]:
    """Inputs and labels as float64, rows sorted by their bytes: sums do not depend on the order that they came in."""
    rows = np.ascontiguousarray(np.column_stack([y, inputs]), dtype=np.float64)
    order = np.argsort(rows.view(np.dtype((np.void, rows.shape[1] * 8))).ravel(), kind="stable")
    rows = rows[order]
    return np.ascontiguousarray(rows[:, 1:]), np.ascontiguousarray(rows[:, 0])


def _folded(layers: tuple[Layer, ...], mean: F64, std: F64) -> tuple[Layer, ...]:
    """The layers on raw inputs, out of layers on standardised ones."""
    weight, bias = layers[0]
    raw = weight / std
    return ((raw, bias - raw @ mean), *layers[1:])


def _log_loss(logits: F64, y: F64) -> F64:
    found: F64 = np.logaddexp(0.0, (1.0 - 2.0 * y) * logits)
    return found


def _simplex_weights(logits: F64, y: F64) -> F64:
    """Weights [N] of least mean log loss, out of sequential quadratic programming; at least as good as any one leaf."""
    from scipy.optimize import minimize
    from scipy.special import expit

    num = logits.shape[1]
    # the scale of the slopes, so that tolerances mean the same for timid and for bold leaves
    scale = float(np.abs(logits).mean()) or 1.0

    def loss(weights: F64) -> float:
        return float(_log_loss(logits @ weights, y).mean()) / scale

    def slope(weights: F64) -> F64:
        found: F64 = logits.T @ (expit(logits @ weights) - y) / len(y) / scale
        return found

    even = np.full(num, 1.0 / num)
    if num == 1:
        return even
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            loss,
            even,
            jac=slope,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * num,
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like}],
            options={"ftol": 1e-15, "maxiter": _SIMPLEX_STEPS},
        )
    candidates = [even, *np.eye(num)]
    weights = np.clip(found.x, 0.0, None)
    if np.isfinite(weights).all() and weights.sum() > 0:
        candidates.insert(0, weights / weights.sum())
    best: F64 = min(candidates, key=loss)
    return best


def _logistic(inputs: F64, y: F64, l2: float) -> Layer:
    """The one layer of least Σ log loss + l2 / 2 · |weights|², by Newton's method with backtracking."""
    from scipy.special import expit

    design = np.column_stack([inputs, np.ones(len(y))])
    penalty = np.append(np.full(inputs.shape[1], l2), 0.0)

    def objective(theta: F64) -> float:
        return float(_log_loss(design @ theta, y).sum() + (penalty * theta * theta).sum() / 2)

    theta, value = np.zeros(design.shape[1]), len(y) * float(np.log(2.0))
    for _ in range(_NEWTON_STEPS):
        chance = expit(design @ theta)
        gradient = design.T @ (chance - y) + penalty * theta
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        curvature[np.diag_indices_from(curvature)] += 1e-13 * np.trace(curvature)
        step = np.linalg.solve(curvature, gradient)
        gain = float(gradient @ step)
        theta, value = _backtracked(objective, theta, value, step, gain)
        if gain <= _DECREMENT * (1.0 + abs(value)):
            break
    return theta[None, :-1], theta[-1:]


def _backtracked(
    objective: Callable[[F64], float], theta: F64, value: float, step: F64, gain: float
) -> tuple[F64, float]:
    """The longest of the steps 1, 1/2, 1/4 … that lowers the objective enough; the place itself where none does."""
    for halvings in range(40):
        share = 0.5**halvings
        there = theta - share * step
        found = objective(there)
        if found <= value - 1e-4 * share * gain:
            return there, found
    return theta, value


def _mlp(inputs: F64, y: F64, settings: MlpOver, seed: int) -> tuple[Layer, ...]:
    """Layers by L-BFGS, from a start that the seed names."""
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(
        hidden_layer_sizes=settings.hidden,
        activation="relu",
        solver="lbfgs",
        alpha=settings.l2,
        max_iter=_MLP_STEPS,
        tol=1e-7,
        random_state=rng.key(seed, "over_arch") % 2**32,
    )
    with warnings.catch_warnings():
        # an optimum that is near enough is one
        warnings.simplefilter("ignore")
        network.fit(inputs, y.astype(np.int64))
    return tuple(
        (np.ascontiguousarray(weight.T), bias.copy())
        for weight, bias in zip(network.coefs_, network.intercepts_, strict=True)
    )
