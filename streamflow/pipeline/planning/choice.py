"""How many stages there are, where a number or ``"auto"`` leaves it open until a sample comes."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from streamflow.pipeline import checks, trees
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.plan import Plan
from streamflow.pipeline.planning.planning import make_plan
from streamflow.pipeline.stages.recurrence import Set

FirstSample = tuple[Any, Any]
"""An input and its target, or None, with a leading dimension of 1."""


def first_sample(inputs: Any, targets: Any) -> FirstSample:
    """Return a copy of the first sample of a call, or of zeros where it has none.

    Raises:
        SampleError: The inputs have no leading dimension of samples.
    """
    checks.count(inputs, "inputs")

    def first(tensor: Tensor) -> Tensor:
        found = tensor.detach()[:1].clone()
        return found if len(found) else found.new_zeros(1, *found.shape[1:])

    return trees.map_tensors(first, inputs), trees.map_tensors(first, targets)


def measured_plan(module: nn.Module, first: FirstSample, options: Options, initial: Set) -> Plan:
    """Measure how to run a network, with one sample of its stream.

    Without a target learning is measured with a loss of the output alone, which costs about the
    same.
    """
    sample, target = first
    needs_target = options.loss is not None and checks.takes_target(options.loss)
    if needs_target and target is None:
        options = replace(options, loss=_any_loss)
    elif not needs_target:
        target = None
    return make_plan(module, sample, target, options=options, initial=initial)


def _any_loss(output: Any) -> Tensor:
    losses = [tensor.square().mean() for tensor in trees.floats(output)]
    return sum(losses[1:], losses[0])
