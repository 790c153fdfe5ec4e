"""From the spec to model, learner settings and lane width; torch is imported only where a module is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll import models as mo
from atoll import spec as sp
from atoll.data import DataShape
from atoll.errors import Problem, SpecError
from atoll.experiment.wiring import rate_of
from atoll.learner.programs import has_program
from atoll.plan import Kernel, auto_lanes

if TYPE_CHECKING:
    from atoll.evaluation import Asked
    from atoll.learner import ClientWork
    from atoll.messages import ModelVersion

__all__ = [
    "asked_of",
    "client_work_of",
    "first_version",
    "inputs_of",
    "kernel_of",
    "kernel_problems",
    "lane_model_of",
    "lanes_of",
    "memory_problems",
    "settings_of",
    "shape_of",
]

#: fields of models that decide their size, the most effective first
_WIDTHS = ("embedding_dim", "embedding", "hidden", "top", "channels")


def settings_of(spec: sp.Spec) -> mo.ModelSettings:
    """The model's settings, without its inputs."""
    match spec.model:
        case sp.LogisticModel():
            return mo.Logistic()
        case sp.MlpModel(hidden=hidden, embedding_dim=embedding_dim):
            return mo.Mlp(hidden, embedding_dim)
        case sp.WideDeepModel(hidden=hidden, embedding_dim=embedding_dim):
            return mo.WideDeep(hidden, embedding_dim)
        case sp.DlrmModel(embedding_dim=embedding_dim, bottom=bottom, top=top, history=history):
            return mo.Dlrm(embedding_dim, bottom or (embedding_dim,), top, history)
        case sp.CnnModel(channels=channels):
            return mo.Cnn(channels)
        case sp.CharLstmModel(embedding=embedding, hidden=units, layers=layers):
            return mo.CharLstm(embedding, units, layers)
        case sp.CustomModel(factory=factory, arguments=arguments):
            return mo.Custom(factory, dict(arguments))


def inputs_of(data: DataShape) -> mo.ModelInputs:
    """What one example looks like to a model.

    Raises:
        SpecError: columns of one table that differ in their number of codes, all of them.
    """
    sizes = tuple(category.size for category in data.categories)
    first: dict[str, int] = {}
    owners = [
        index if category.table is None else first.setdefault(category.table, index)
        for index, category in enumerate(data.categories)
    ]
    problems = [
        Problem("data", f"category {category.name!r} with {category.size} codes", f"{sizes[owner]} codes, as {known!r}")
        for category, owner in zip(data.categories, owners, strict=True)
        if category.size != sizes[owner] and (known := data.categories[owner].name)
    ]
    if problems:
        raise SpecError(problems)
    shared = () if len(set(owners)) == len(owners) else tuple(owners)
    return mo.ModelInputs(data.task, data.num_outputs, data.x_shape, sizes, data.vocabulary, shared)


def shape_of(spec: sp.Spec, data: DataShape) -> mo.ModelShape:
    """Names and shapes of the model's weights."""
    return mo.shape_of(settings_of(spec), inputs_of(data))


def memory_problems(spec: sp.Spec, data: DataShape) -> list[Problem]:
    """Whether one version of the model fits what a device can hold, with the bytes of each table and of the rest."""
    limit, shape = spec.population.device_memory_bytes, shape_of(spec, data)
    if limit is None or shape.bytes <= limit:
        return []
    lines = ["Bytes of each table:"]
    for table in shape.tables:
        for offset in sorted(set(table.offsets)):
            columns = [data.categories[g] for g, begin in enumerate(table.offsets) if begin == offset]
            name, size = ", ".join(column.name for column in columns), columns[0].size
            lines.append(f"  {name}: {size:,} rows × {table.dim} × 4 = {4 * size * table.dim:,}")
    lines.append(f"  dense weights: {shape.dense_size:,} × 4 = {4 * shape.dense_size:,}")
    widths = [f"model.{name}" for name in _WIDTHS if name in type(spec.model).model_fields]
    smaller = f"Lower {' or '.join(widths)}" if widths else "Take fewer columns or codes"
    advice = f"{smaller}, or train a model per cluster of clients and join them on the server (section ensemble)"
    got, rule = f"a model of {shape.bytes:,} bytes", f"a model of at most {limit:,} bytes, which a device can hold"
    return [Problem("population.device_memory_bytes", got, rule, advice, "\n".join(lines))]


def kernel_of(spec: sp.Spec) -> Kernel:
    """What trains blocks: as the spec says, or the fastest for this kind of model on this device class."""
    if spec.runtime.kernel != "auto":
        return spec.runtime.kernel
    settings, is_cpu = settings_of(spec), spec.runtime.device_class == "cpu"
    if isinstance(settings, mo.Custom):
        from atoll.models.custom import custom_module, draws, fits_lanes

        return "lanes" if (fits_lanes(settings) if is_cpu else not draws(custom_module(settings))) else "single"
    if is_cpu and isinstance(settings, mo.Cnn | mo.CharLstm):
        return "single"
    is_exact = spec.client.precision == "float32"
    return "compiled" if is_cpu and is_exact and has_program(settings) else "lanes"


def kernel_problems(spec: sp.Spec) -> list[Problem]:
    """Whether the kernel can train such a module."""
    if spec.runtime.kernel == "lanes" and isinstance(settings := settings_of(spec), mo.Custom):
        from atoll.models.custom import custom_module, draws

        if draws(custom_module(settings)):
            rule, why = "auto or single for a module with dropout", "Lanes cannot draw for each client alone"
            return [Problem("runtime.kernel", "lanes", rule, why)]
    return []


def lanes_of(spec: sp.Spec, shape: mo.ModelShape) -> int:
    """W: as the spec says, or by the profile table."""
    lanes = spec.runtime.lanes
    return auto_lanes(shape.dense_size, spec.runtime.device_class, kernel_of(spec)) if lanes == "auto" else lanes


def lane_model_of(spec: sp.Spec, data: DataShape) -> mo.LaneModel:
    """The model with a lane dimension."""
    return mo.build_model(settings_of(spec), inputs_of(data))


def asked_of(spec: sp.Spec, data: DataShape) -> Asked:
    """The model as evaluation asks it: without torch where clients train without it, by the choice of `kernel_of`."""
    if kernel_of(spec) == "compiled":
        return mo.PlainModel(settings_of(spec), inputs_of(data))
    from atoll.evaluation import LaneForward

    return LaneForward(lane_model_of(spec, data), spec.runtime.device_class)


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
        precision=client.precision,
    )
