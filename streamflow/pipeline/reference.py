"""The specification: every schedule and backward in plain sequential Python.

Nothing here is fast and nothing is shared with the implementation, which is held against it.

A stage s of S performs two actions per sample n. A schedule says in which slot each takes place;
within a slot forwards come before backwards. Samples are counted from the last drain.

    schedule      forward of n    backward of n        updates between the two
    sequential    2Sn + s         2Sn + 2S-1 - s       0
    1f1b          2n + s          2n + 2S-1 - s        S-1-s
    lockstep      n + s           n + 2(S-1) - s       2(S-1-s)

A backward is the vector-Jacobian product of the stage at an input and at weights:

    backward      input                                        weights
    own           the sample's own                             current
    stashed       the sample's own                             those of its forward
    newest        of the newest sample the stage forwarded     current

It sees the buffers as the forward of that input saw them, and writes none. A sample that is not
learned keeps its slots: its gradient is empty and nothing is updated. Of ``accumulate`` learned
samples a stage takes the mean gradient (G of them) and makes one update. After a drain the next
sample enters at slot 0. ``greedy`` has no slots: it is given as the order that a run of it
recorded, and where stages never wait for each other that order is the one of ``sequential``.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Step = tuple[str, int, int]
"""An action, its stage, and its sample counted from the start of the stream."""


def steps(schedule: str, num_stages: int, first: int, stop: int) -> list[Step]:
    """List the actions for samples ``first`` to ``stop`` between two drains, in order."""
    period = {"sequential": 2 * num_stages, "1f1b": 2, "lockstep": 1}[schedule]
    delay = 2 * num_stages - (2 if schedule == "lockstep" else 1)
    slots = []
    for n in range(stop - first):
        for s in range(num_stages):
            slots.append((period * n + s, 0, s, first + n))
            slots.append((period * n + delay - s, 1, s, first + n))
    return [(("forward", "backward")[kind], s, n) for _, kind, s, n in sorted(slots)]


def segments(drains: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """Cut ``count`` samples at the drains, each given by the samples before it."""
    bounds = [0, *sorted(drains), count]
    return itertools.pairwise(bounds)


def run(
    stages: Sequence[nn.Module],
    loss: Callable[[Any, Any], Tensor],
    optimizers: Sequence[torch.optim.Optimizer | None],
    inputs: Sequence[Tensor],
    targets: Sequence[Any],
    learned: Sequence[bool],
    order: Sequence[Step],
    *,
    backward: str = "own",
    accumulate: int = 1,
) -> list[Tensor]:
    """Predict and learn in the given order; return the outputs and leave the weights learned."""
    last = len(stages) - 1
    values: list[dict[int, Tensor]] = [dict(enumerate(inputs)), *({} for _ in stages)]
    gradients: list[dict[int, Tensor | None]] = [{} for _ in stages]
    seen: list[dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]] = [{} for _ in stages]
    newest = [-1] * len(stages)
    started: list[list[tuple[Tensor | None, ...]]] = [[] for _ in stages]
    for action, s, n in order:
        stage = stages[s]
        if action == "forward":
            seen[s][n] = (_copy(stage.named_parameters()), _copy(stage.named_buffers()))
            newest[s] = n
            with torch.no_grad():
                values[s + 1][n] = stage(values[s][n].clone())
        elif learned[n]:
            source = newest[s] if backward == "newest" else n
            old_weights, buffers = seen[s][source]
            weights = old_weights if backward == "stashed" else _copy(stage.named_parameters())
            x = values[s][source].clone().requires_grad_()
            y = functional_call(stage, {**weights, **_copy(iter(buffers.items()))}, (x.clone(),))
            root = loss(y, targets[n]) if s == last else y
            wanted = [*weights.values(), x]
            found = torch.autograd.grad(root, wanted, gradients[s].get(n), allow_unused=True)
            if s > 0:
                gradients[s - 1][n] = found[-1]
            optimizer = optimizers[s]
            started[s].append(found)
            if optimizer is not None and len(started[s]) == accumulate:
                for parameter, *gradients_G in zip(stage.parameters(), *started[s], strict=False):
                    parameter.grad = _mean(gradients_G)
                optimizer.step()
                started[s].clear()
    return [values[-1][n] for n in range(len(inputs))]


def _mean(gradients_G: Sequence[Tensor | None]) -> Tensor | None:
    present = [gradient for gradient in gradients_G if gradient is not None]
    return sum(present[1:], present[0]) * (1 / len(gradients_G)) if present else None


def _copy(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        if isinstance(tensor, nn.Parameter)
        else tensor.detach().clone()
        for name, tensor in tensors
    }
