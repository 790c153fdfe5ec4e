"""A torch module of your own: lanes by torch.func.vmap over its functional form."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from atoll.errors import Problem, SpecError
from atoll.models.lanes import Gradients, LocalRows, Params, autograd_gradients
from atoll.models.shapes import Custom, ModelInputs, ParameterShape, shape_of

__all__ = ["CustomLanes", "custom_module", "custom_parameters", "draws", "fits_lanes"]

_PLACE = "model.factory"


def custom_module(settings: Custom) -> torch.nn.Module:
    """Calls the factory.

    Raises:
        SpecError: it cannot be imported or called, returns no module, or one that shares state between examples.
    """
    module_name, _, name = settings.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
        # The module draws its first weights; torch's global generator is not ours to move.
        with torch.random.fork_rng(devices=[]):
            made = factory(**settings.arguments)
    except Exception as error:
        # The factory is foreign code: whatever it raises is an answer to the spec.
        why = f"{type(error).__name__}: {error}"
        hint = "the package must be installed where workers run, and model.arguments must fit the function"
        raise SpecError([Problem(_PLACE, repr(settings.factory), "a callable that works", why, hint)]) from error
    if not isinstance(made, torch.nn.Module):
        raise SpecError([Problem(_PLACE, repr(settings.factory), f"a torch.nn.Module, not {type(made).__name__}")])
    for path, part in made.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            why = "batch statistics are not weights: clients would overwrite each other's"
            hint = "use torch.nn.GroupNorm"
            raise SpecError([Problem(_PLACE, f"BatchNorm at {path!r}", "no BatchNorm", why, hint)])
    if not list(made.parameters()):
        raise SpecError([Problem(_PLACE, repr(settings.factory), "a module with parameters")])
    return made.float()


def draws(module: torch.nn.Module) -> bool:
    """Whether the module draws random numbers while it trains."""
    parts = list(module.modules())
    return any(part.p > 0 for part in parts if isinstance(part, torch.nn.modules.dropout._DropoutNd)) or any(
        part.dropout > 0 for part in parts if isinstance(part, torch.nn.RNNBase)
    )


def fits_lanes(settings: Custom) -> bool:
    """Whether lanes gain: neither large kernels (convolutions, recurrent cells), nor numbers drawn, inside."""
    module = custom_module(settings)
    heavy = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)
    return not draws(module) and not any(isinstance(part, heavy) for part in module.modules())


def custom_parameters(settings: Custom, inputs: ModelInputs) -> list[ParameterShape]:
    """Names and shapes of the module's parameters."""
    del inputs
    return [ParameterShape(name, tuple(p.shape)) for name, p in custom_module(settings).named_parameters()]


class CustomLanes:
    """Lane form of a `Custom` module, called as module(x), or module(x, c) where the data has categories."""

    def __init__(self, settings: Custom, inputs: ModelInputs) -> None:
        self.shape = shape_of(settings, inputs)
        self._settings = settings
        self._module = custom_module(settings)
        # lanes share one generator: what a client draws would depend on its company; in evaluation mode none does
        self._module.eval()
        self.reads_codes = bool(inputs.category_sizes)

    def logits(self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor]) -> Tensor:
        """[L, B, num_outputs]."""
        del rows
        arguments = (batch["x"], batch["c"]) if self.reads_codes else (batch["x"],)
        self._module.to(batch["x"].device)

        def one(weights: dict[str, Tensor], *values: Tensor) -> Tensor:
            found: Tensor = functional_call(self._module, weights, values)
            return found

        found = vmap(one)(dict(params), *arguments)
        return found.reshape(*batch["x"].shape[:2], self.shape.num_outputs)

    def gradients(
        self, params: Params, rows: LocalRows | None, batch: Mapping[str, Tensor], share: Tensor
    ) -> Gradients:
        """By autograd."""
        return autograd_gradients(self, params, rows, batch, share)

    def module(self) -> torch.nn.Module:
        """A fresh module from the factory, in evaluation mode."""
        return custom_module(self._settings).eval()
