"""From the spec to model, learner settings and lane width; torch is imported only where a module is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll import models as mo
from atoll import spec as sp
from atoll.data import DataShape
from atoll.experiment.wiring import rate_of
from atoll.plan import auto_lanes

if TYPE_CHECKING:
    from atoll.learner import ClientWork
    from atoll.messages import ModelVersion

__all__ = ["client_work_of", "first_version", "inputs_of", "lane_model_of", "lanes_of", "settings_of", "shape_of"]


def settings_of(spec: sp.Spec) -> mo.ModelSettings:
    """The model's settings, without its inputs."""
    match spec.model:
        case sp.LogisticModel():
            return mo.Logistic()
        case sp.MlpModel(hidden=hidden, embedding_dim=embedding_dim):
            return mo.Mlp(hidden, embedding_dim)
        case sp.CnnModel(channels=channels):
            return mo.Cnn(channels)
        case sp.CharLstmModel(embedding=embedding, hidden=units, layers=layers):
            return mo.CharLstm(embedding, units, layers)
        case sp.CustomModel(factory=factory, arguments=arguments):
            return mo.Custom(factory, dict(arguments))


def inputs_of(data: DataShape) -> mo.ModelInputs:
    """What one example looks like to a model."""
    sizes = tuple(category.size for category in data.categories)
    return mo.ModelInputs(data.task, data.num_outputs, data.x_shape, sizes, data.vocabulary)


def shape_of(spec: sp.Spec, data: DataShape) -> mo.ModelShape:
    """Names and shapes of the model's weights."""
    return mo.shape_of(settings_of(spec), inputs_of(data))


def lanes_of(spec: sp.Spec, shape: mo.ModelShape) -> int:
    """W: as the spec says, or by the profile table."""
    lanes = spec.runtime.lanes
    return auto_lanes(shape.dense_size, spec.runtime.device_class) if lanes == "auto" else lanes


def lane_model_of(spec: sp.Spec, data: DataShape) -> mo.LaneModel:
    """The model with a lane dimension."""
    return mo.build_model(settings_of(spec), inputs_of(data))


def first_version(spec: sp.Spec, data: DataShape) -> ModelVersion:
    """Version 0: from `model.init_from`, or drawn from the seed."""
    from atoll.messages import ModelVersion

    if spec.model.init_from is None:
        return mo.init_version(settings_of(spec), inputs_of(data), spec.seed)
    found = mo.load_version(spec.model.init_from, shape_of(spec, data))
    return ModelVersion(0, found.dense, found.tables)


def client_work_of(spec: sp.Spec) -> ClientWork:
    """Local SGD."""
    from atoll.learner import ClientWork

    client = spec.client
    return ClientWork(
        lr=client.lr,
        epochs=client.epochs,
        batch_size=client.batch_size,
        momentum=client.momentum,
        weight_decay=client.weight_decay,
        proximal_mu=client.proximal_mu,
        short_batch_scaling=client.short_batch_scaling,
        schedule=rate_of(client.schedule),
    )
