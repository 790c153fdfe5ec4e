"""Cheaper forms of torch's own calls while a module trains: the same values to rounding, with less memory moved.

A linear layer's weight gradient is the product of two thin matrices, the slopes and the inputs of one batch. Kept as
these factors it goes into the weights with one product; torch would zero, fill, add and read four times the weight's
size. And torch's max-pooling goes back several times faster where slopes lie as the images do: channels last.

Shape legend: B rows of a call (all dimensions but the last, flattened), I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["CheaperCalls", "pool_first"]

#: (slopes [B, O], inputs [B, I]) of each call of one layer
Factors = list[tuple[Tensor, Tensor]]
_FEW_ROWS = 32
_POOLS = (torch.max_pool2d, functional.max_pool2d, functional.max_pool2d_with_indices)
_POOL_MODULES = (torch.nn.MaxPool1d, torch.nn.MaxPool2d, torch.nn.MaxPool3d)


class CheaperCalls(TorchFunctionMode):
    """A context in which a module's forward runs; its backward may run behind it.

    Args:
        weights: leaves whose gradients are asked of `add_gradient`. What `torch.nn.functional.linear` adds to them is
            kept as factors.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = list(weights)
        self._factors: Mapping[int, Factors] = {id(weight): [] for weight in self._weights}

    def forget(self) -> None:
        """Forgets the weights' gradients; to be called before each backward pass."""
        for weight in self._weights:
            weight.grad = None
            self._factors[id(weight)].clear()

    def add_gradient(self, weight: Tensor, to: Tensor, alpha: float = 1.0, beta: float = 1.0) -> None:
        """to ← beta · to + alpha · the gradient of `weight` by the last backward pass, whatever used the weight.

        Args:
            weight: one of those that were given.
            to: of the weight's shape, changed in place.
            alpha: factor on the gradient.
            beta: factor on what is there; at 0 it does not count, NaN included.
        """
        factors = self._factors[id(weight)]
        if beta == 0 and not factors:
            to.zero_()
        for slopes, inputs in factors:
            to.addmm_(slopes.T.to(to.dtype), inputs.to(to.dtype), alpha=alpha, beta=beta)
            beta = 1.0
        if weight.grad is not None:
            # from uses other than through `linear`
            to.add_(weight.grad, alpha=alpha)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call itself, or its cheaper form."""
        del types
        kwargs = kwargs or {}
        if func is functional.linear and not kwargs and id(args[1]) in self._factors and args[1].requires_grad:
            bias = args[2] if len(args) > 2 else None
            return _Linear.apply(args[0], args[1], bias, self._factors[id(args[1])])  # type: ignore[no-untyped-call]
        found = func(*args, **kwargs)
        if func in _POOLS:
            _lay_out_slopes(found[0] if isinstance(found, tuple) else found)
        return found


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, whose backward keeps factors where torch would build the weight's gradient.

    Under autocast as torch's, but with few rows in the weight's own precision: rounding a weight that every step
    changes moves more memory than the products do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Factors) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            is_few = x.shape[:-1].numel() <= _FEW_ROWS
            dtype = weight.dtype if is_few else torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.kept = kept
        rows = x.reshape(-1, x.shape[-1])
        # this way round: with few rows the other is half as fast on CPUs
        with torch.autocast(device, enabled=False):
            product = (weight @ rows.T).T
        found = product if bias is None else product + bias.to(product.dtype)
        return found.contiguous().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = slopes.reshape(-1, slopes.shape[-1])
        ctx.kept.append((rows, x.detach().reshape(-1, x.shape[-1])))
        below = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return below, None, rows.sum(0) if ctx.needs_input_grad[2] else None, None


def pool_first(module: torch.nn.Module) -> None:
    """Swaps ReLU and the max-pooling behind it in every Sequential: the same numbers, a ReLU of a quarter of the work.

    ReLU keeps order, so it commutes with the maximum; where several inputs tie at 0, neither way has a slope.
    """
    for part in module.modules():
        if type(part) is torch.nn.Sequential:
            for place in range(len(part) - 1):
                relu, pool = part[place], part[place + 1]
                is_pool = type(pool) in _POOL_MODULES and not pool.return_indices
                if type(relu) is torch.nn.ReLU and is_pool and not (_is_hooked(relu) or _is_hooked(pool)):
                    part[place], part[place + 1] = pool, relu


def _is_hooked(module: torch.nn.Module) -> bool:
    return any(bool(value) for name, value in vars(module).items() if name.endswith("_hooks"))


def _lay_out_slopes(pooled: Tensor) -> None:
    """Has the slopes by images with their channels last arrive so."""
    if pooled.requires_grad and pooled.ndim == 4 and pooled.is_contiguous(memory_format=torch.channels_last):
        pooled.register_hook(_channels_last)  # type: ignore[no-untyped-call]


def _channels_last(slopes: Tensor) -> Tensor:
    return slopes.contiguous(memory_format=torch.channels_last)
