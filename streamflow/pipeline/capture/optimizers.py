"""Optimizers as plain formulas over tensors, for code that is compiled as a whole.

Each does what the class of the same name in ``torch.optim`` does, on the same state. What depends
on the learning rate or on the count of steps are factors that are computed outside, in float64 as
torch does, so that they may change without a new compilation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import torch_private

State = dict[str, Tensor]
Settings = dict[str, Any]
Factors = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Formula:
    """One optimizer.

    Attributes:
        update: ``(parameter, gradient, state, factors, settings)`` to the new parameter and state.
        state: Names of the tensors that it keeps for each parameter, with such settings.
        factors: ``(rate, step, settings)`` to the factors of the steps that come, counted from 1;
            for numbers and for tensors in float64 alike.
        num_factors: How many factors there are.
        counts: Whether it keeps a ``step``, too.
    """

    update: Callable[[Tensor, Tensor, State, Factors, Settings], tuple[Tensor, State]]
    state: Callable[[Settings], list[str]]
    factors: Callable[[Any, Any, Settings], tuple[Any, ...]]
    num_factors: int = 1
    counts: bool = True


def formula_of(optimizer: torch.optim.Optimizer) -> Formula | None:
    """Return the formula of an optimizer, or None where it has its own way."""
    is_differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    if is_differentiable or not torch_private.is_own_step(optimizer):
        return None
    return FORMULAS.get(type(optimizer))


def _sgd(
    w: Tensor, g: Tensor, state: State, factors: Factors, settings: Settings
) -> tuple[Tensor, State]:
    g = _with_decay(w, g, settings)
    momentum = settings["momentum"]
    if not momentum:
        return w - factors[0] * g, {}
    buffer = momentum * state["momentum_buffer"] + (1 - settings["dampening"]) * g
    direction = g + momentum * buffer if settings["nesterov"] else buffer
    return w - factors[0] * direction, {"momentum_buffer": buffer}


def _adam(
    w: Tensor, g: Tensor, state: State, factors: Factors, settings: Settings
) -> tuple[Tensor, State]:
    beta1, beta2 = settings["betas"]
    decay = settings["weight_decay"]
    if decay and settings["decoupled_weight_decay"]:
        g = -g if settings["maximize"] else g
        w = w * factors[2]
    else:
        g = _with_decay(w, g, settings)
    first = state["exp_avg"] + (1 - beta1) * (g - state["exp_avg"])
    second = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    found = {"exp_avg": first, "exp_avg_sq": second}
    if settings["amsgrad"]:
        second = torch.maximum(state["max_exp_avg_sq"], second)
        found["max_exp_avg_sq"] = second
    direction = first / (second.sqrt() / factors[1] + settings["eps"])
    return w - factors[0] * direction, found


def _adam_factors(rate: Any, step: Any, settings: Settings) -> tuple[Any, ...]:
    beta1, beta2 = settings["betas"]
    decay = 1 - rate * settings["weight_decay"]
    return rate / (1 - beta1**step), (1 - beta2**step) ** 0.5, decay


def _rmsprop(
    w: Tensor, g: Tensor, state: State, factors: Factors, settings: Settings
) -> tuple[Tensor, State]:
    g = _with_decay(w, g, settings)
    alpha = settings["alpha"]
    square = alpha * state["square_avg"] + (1 - alpha) * g * g
    found, spread = {"square_avg": square}, square
    if settings["centered"]:
        mean = state["grad_avg"] + (1 - alpha) * (g - state["grad_avg"])
        found["grad_avg"] = mean
        spread = square - mean * mean
    direction = g / (spread.sqrt() + settings["eps"])
    if settings["momentum"] > 0:
        direction = settings["momentum"] * state["momentum_buffer"] + direction
        found["momentum_buffer"] = direction
    return w - factors[0] * direction, found


def _adagrad(
    w: Tensor, g: Tensor, state: State, factors: Factors, settings: Settings
) -> tuple[Tensor, State]:
    g = _with_decay(w, g, settings)
    total = state["sum"] + g * g
    return w - factors[0] * (g / (total.sqrt() + settings["eps"])), {"sum": total}


def _adagrad_factors(rate: Any, step: Any, settings: Settings) -> tuple[Any, ...]:
    return (rate / (1 + (step - 1) * settings["lr_decay"]),)


def _rate_alone(rate: Any, step: Any, settings: Settings) -> tuple[Any, ...]:
    return (rate,)


def _with_decay(w: Tensor, g: Tensor, settings: Settings) -> Tensor:
    g = -g if settings["maximize"] else g
    return g + settings["weight_decay"] * w if settings["weight_decay"] else g


def _adam_state(settings: Settings) -> list[str]:
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if settings["amsgrad"] else [])]


def _rmsprop_state(settings: Settings) -> list[str]:
    centered = ["grad_avg"] if settings["centered"] else []
    return ["square_avg", *centered, *(["momentum_buffer"] if settings["momentum"] > 0 else [])]


def _sgd_state(settings: Settings) -> list[str]:
    return ["momentum_buffer"] if settings["momentum"] else []


FORMULAS: dict[type[torch.optim.Optimizer], Formula] = {
    torch.optim.SGD: Formula(_sgd, _sgd_state, _rate_alone, counts=False),
    torch.optim.Adam: Formula(_adam, _adam_state, _adam_factors, num_factors=3),
    torch.optim.AdamW: Formula(_adam, _adam_state, _adam_factors, num_factors=3),
    torch.optim.RMSprop: Formula(_rmsprop, _rmsprop_state, _rate_alone),
    torch.optim.Adagrad: Formula(_adagrad, lambda _: ["sum"], _adagrad_factors),
}
