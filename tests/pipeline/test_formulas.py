"""Formulas of optimizers against the optimizers themselves."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamflow.pipeline.capture.optimizers import formula_of

STEPS = 7

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    (torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-3}),
    (torch.optim.AdamW, {"amsgrad": True, "maximize": True, "foreach": True}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.RMSprop, {"centered": True, "alpha": 0.8, "eps": 1e-3}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    (torch.optim.Adagrad, {"weight_decay": 0.1, "maximize": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_a_formula_does_what_the_optimizer_does(kind: Any, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, 3, 4, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(random())
    optimizer = kind([parameter], lr=0.1, **options)
    formula = formula_of(optimizer)
    assert formula is not None
    settings = optimizer.param_groups[0]
    weight, state = parameter.detach().clone(), dict[str, Tensor]()
    for step in range(1, STEPS + 1):
        settings["lr"] = 0.1 / step
        gradient = random()
        if step > 1:  # the first step makes the state, which is the optimizer's own affair
            factors = formula.factors(settings["lr"], step, settings)
            assert len(factors) == formula.num_factors
            tensors = [torch.tensor(factor, dtype=torch.float64) for factor in factors]
            weight, state = formula.update(weight, gradient, state, tensors, settings)
        parameter.grad = gradient.clone()
        optimizer.step()
        if step == 1:
            kept = optimizer.state[parameter]
            weight = parameter.detach().clone()
            state = {name: kept[name].clone() for name in formula.state(settings)}
        torch.testing.assert_close(weight, parameter.detach(), rtol=0, atol=1e-13)
        for name, tensor in state.items():
            torch.testing.assert_close(
                tensor, optimizer.state[parameter][name], rtol=0, atol=1e-13, msg=name
            )
    kept_names = {name for name, kept in optimizer.state[parameter].items() if kept is not None}
    assert kept_names == {*state, *(["step"] if formula.counts else [])}


def test_an_optimizer_with_a_way_of_its_own_has_no_formula() -> None:
    class Other(torch.optim.SGD):
        pass

    parameter = nn.Parameter(torch.zeros(1))
    assert formula_of(Other([parameter])) is None
    assert formula_of(torch.optim.Rprop([parameter])) is None
    assert formula_of(torch.optim.Adam([parameter], differentiable=True)) is None
    hooked = torch.optim.SGD([parameter])
    hooked.register_step_pre_hook(lambda *_: None)
    assert formula_of(hooked) is None
    replaced = torch.optim.SGD([parameter])
    replaced.step = lambda closure=None: None  # type: ignore[method-assign]
    assert formula_of(replaced) is None


def test_a_schedule_of_learning_rates_keeps_the_formula() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    assert formula_of(optimizer) is not None
