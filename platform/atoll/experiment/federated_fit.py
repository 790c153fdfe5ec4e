"""An over-arch by federated learning: the leaves frozen, what they say of a client's rows is the client's data.

The fit is an ordinary run: of logistic regression or a multilayer perceptron, on data that one file holds. Its rows are
those that the leaves were trained on, which favours leaves that are over-fitted; a fit on the server's rows is not so.

Shape legend: R rows, D data clients, N leaves, K outputs of a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from atoll import aggregation as agg
from atoll import spec as sp
from atoll.data import Array, ClientData, HeldOut, LeafOutputsSource, open_data
from atoll.data.leaf_outputs import leaf_outputs_table, read_scaling, save_leaf_outputs
from atoll.errors import Problem, SpecError
from atoll.experiment.modelling import lane_model_of, shape_of
from atoll.experiment.splitting import server_rows
from atoll.experiment.study import EnsembleArm, Member
from atoll.messages import ModelVersion, model_digest
from atoll.models import LaneModel

__all__ = ["over_arch_from", "over_arch_spec", "write_leaf_outputs"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Inputs = Literal["logits", "penultimate"]
_CHUNK_ROWS = 2**16


def write_leaf_outputs(
    arm: EnsembleArm,
    members: Sequence[Member],
    data: ClientData,
    models: Mapping[str, ModelVersion],
    folder: Path,
) -> LeafOutputsSource:
    """Asks the arm's members about every training and held-out row, and leaves the answers in a file in `folder`.

    The outputs are standardised by the mean and the standard deviation over the server's rows, or over all training
    rows where the server has none. The file's name and content are a function of data, leaves and spec alone; a file
    that is there already, whole, is taken.

    Args:
        arm: with a federated fit.
        members: of the study.
        data: of `arm.spec`.
        models: member → its weights.
        folder: where the file goes; all workers must see it.

    Raises:
        SpecError: outputs that are not finite; `penultimate` of models that do not offer it.
        OSError: the file cannot be written.

    Purity: writes a file.
    """
    specs = {member.name: member.spec for member in members}
    leaves = [(lane_model_of(specs[name], data.shape), models[name]) for name in arm.members]
    kind, evaluation = _inputs_of(arm), arm.spec.evaluation
    digests = ", ".join(model_digest(version) for _, version in leaves)
    server = f"{evaluation.server_share!r} of {evaluation.split}, seed {arm.spec.seed}"
    story = f"data {data.identity}; {kind} of leaves {digests}; standardised by the server's rows: {server}"
    key = hashlib.sha256(story.encode()).hexdigest()[:16]
    if (found := _there(folder, key)) is not None:
        return found
    digest, arrays = _asked(arm, data, leaves, story)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"leaf-outputs-{key}-{digest}.npz"
    save_leaf_outputs(path, arrays)
    return LeafOutputsSource(str(path.absolute()), digest)


def _asked(
    arm: EnsembleArm, data: ClientData, leaves: Sequence[tuple[LaneModel, ModelVersion]], story: str
) -> tuple[str, dict[str, Array]]:
    """The file's content and its digest."""
    from atoll.evaluation import outputs

    kind = _inputs_of(arm)

    def ask(arrays: Mapping[str, Array]) -> F64:
        return np.concatenate([outputs(model, version, arrays, kind=kind) for model, version in leaves], axis=1)

    x, y, counts = _training_rows(data, ask)
    own = ask(server_rows(arm.spec, data).arrays)
    mean, std = _scaling(own if len(own) else x)

    def scaled(values: F64) -> Array:
        return ((values - mean) / std).astype(np.float32)

    held_out = {
        name: HeldOut({"x": scaled(ask(part.arrays)), "y": part.arrays["y"]}, part.client, part.train_examples)
        for name, part in data.held_out().items()
    }
    everything = (x, *(part.arrays["x"] for part in held_out.values()))
    bad = sum(int((~np.isfinite(values)).any(axis=1).sum()) for values in everything)
    if bad:
        got, why = f"{bad} rows of which a leaf of {arm.name} says NaN or infinity", "Such a leaf has diverged"
        raise SpecError([Problem("ensemble.fit", got, "finite outputs of leaves", why, "Lower its client.lr")])
    return leaf_outputs_table(story, scaled(x), y, counts, held_out, mean, std)


def over_arch_spec(arm: EnsembleArm, source: LeafOutputsSource) -> sp.Spec:
    """The spec of the run that fits the over-arch of `arm`: an ordinary one, on the outputs of its members.

    Population, devices, evaluation, seed, tracking and runtime are those of the ensemble; client, schedule, aggregation
    and stop those of `ensemble.fit`. The penalty `l2` of the over-arch is for fits on the server: here
    `client.weight_decay` is it.

    Raises:
        SpecError: a spec that cannot be.

    Purity: pure.
    """
    ensemble = arm.spec.ensemble
    if ensemble is None or not isinstance(ensemble.fit, sp.FederatedFit):
        raise ValueError(f"the over-arch of {arm.name} is not fitted by federated learning")
    plain = sp.to_dict(arm.spec)
    over_arch = ensemble.over_arch
    model = {"kind": "mlp", "hidden": list(over_arch.hidden)} if isinstance(over_arch, sp.MlpOverArch) else None
    sections = {name: plain["ensemble"]["fit"][name] for name in ("client", "schedule", "aggregation", "stop")}
    return sp.derived(
        arm.spec,
        {},
        name=f"{arm.spec.name}-{arm.name}-over-arch"[:250],
        data={"kind": "leaf_outputs", "path": source.path, "digest": source.digest},
        population={**plain["population"], "device_memory_bytes": None},
        clusters={"kind": "single"},
        model=model or {"kind": "logistic"},
        ensemble=None,
        comparison=None,
        **sections,
    )


def over_arch_from(version: ModelVersion, arm: EnsembleArm, source: LeafOutputsSource) -> agg.OverArch:
    """The over-arch whose weights a finished fit left: it takes the leaves' outputs as they are.

    Args:
        version: of the run of `over_arch_spec(arm, source)`.
        arm: with a federated fit.
        source: as it was fitted on.

    Raises:
        SpecError: the file is not there any more, or has changed.

    Purity: reads the file.
    """
    spec = over_arch_spec(arm, source)
    mean, std = read_scaling(source)
    arrays, begin = {}, 0
    for parameter in shape_of(spec, open_data(source).shape).parameters:
        values = version.dense[begin : begin + parameter.size].astype(np.float64)
        arrays[parameter.name] = values.reshape(parameter.shape)
        begin += parameter.size
    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    layers = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
    weight, bias = layers[0]
    raw = weight / std
    layers[0] = (raw, bias - raw @ mean)
    return agg.OverArch("mlp" if spec.model.kind == "mlp" else "logistic", tuple(layers))


def _inputs_of(arm: EnsembleArm) -> Inputs:
    over_arch = None if arm.spec.ensemble is None else arm.spec.ensemble.over_arch
    return over_arch.inputs if isinstance(over_arch, sp.LogisticOverArch | sp.MlpOverArch) else "logits"


def _there(folder: Path, key: str) -> LeafOutputsSource | None:
    """The file that was written before, if its content is what its name says."""
    for path in sorted(folder.glob(f"leaf-outputs-{key}-*.npz")):
        source = LeafOutputsSource(str(path.absolute()), path.stem.rpartition("-")[2])
        try:
            read_scaling(source)
        except SpecError:
            continue
        return source
    return None


def _scaling(values: F64) -> tuple[F64, F64]:
    mean, std = values.mean(0), values.std(0)
    # what never changes says nothing; below rounding, it never changes
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0)


def _training_rows(data: ClientData, ask: Callable[[Mapping[str, Array]], F64]) -> tuple[F64, I64, I64]:
    """Outputs [R, N · K] and labels [R] of all training rows, client by client, and rows per client [D]."""
    known = data.counts()
    counts = data.num_examples(np.arange(data.num_clients)) if known is None else np.asarray(known)
    starts = np.cumsum(counts) - counts
    rows = int(counts.sum())
    x, y = np.empty((0, 0)), np.empty(rows, dtype=np.int64)
    for clients in _chunks(counts):
        positions = np.arange(counts[clients].max())
        real = positions[None, :] < counts[clients][:, None]
        block = data.gather(clients, np.broadcast_to(positions, real.shape))
        places = (starts[clients][:, None] + positions)[real]
        said = ask({name: values[real] for name, values in block.items() if name != "y"})
        if not x.size:
            x = np.empty((rows, said.shape[1]))
        x[places], y[places] = said, block["y"][real]
    return x, y, counts.astype(np.int64)


def _chunks(counts: I64) -> Iterator[I64]:
    """Clients of about one size together, so that a block of them is hardly padded."""
    order = np.argsort(-counts, kind="stable")
    begin = 0
    while begin < len(order):
        end = begin + max(1, _CHUNK_ROWS // int(counts[order[begin]]))
        yield order[begin:end]
        begin = end
