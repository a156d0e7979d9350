"""What is checked before a sample enters the pipeline."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import SampleError
from streamflow.pipeline import trees
from streamflow.pipeline.stages.stage import is_finite


def takes_target(loss: Callable[..., Any]) -> bool:
    """Say whether a loss takes (output, target) rather than (output) alone."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(required) != 1


def classification(loss: Callable[..., Any] | None) -> int | None:
    """Return the class index that the loss ignores, or None for a loss without class indices."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return int(loss.ignore_index)
    arguments = loss.keywords if isinstance(loss, functools.partial) else {}
    function = loss.func if isinstance(loss, functools.partial) else loss
    if function in (F.cross_entropy, F.nll_loss):
        return int(arguments.get("ignore_index", -100))
    return None


def count(tree: Any, where: str) -> int:
    """Return the number of samples in ``tree``: the leading dimension of all its tensors.

    Raises:
        SampleError: There is none, or tensors differ in it.
    """
    sizes = [t.shape[0] if t.dim() else -1 for t in trees.tensors(tree)]
    if not sizes or min(sizes) < 0:
        got = "a tensor without dimensions" if sizes else type(tree).__name__
        msg = (
            f"{where}: expected tensors with a leading dimension of samples, got {got}; stack them"
        )
        raise SampleError(msg, index=0)
    if len(set(sizes)) > 1:
        msg = (
            f"{where}: expected the same number of samples in every tensor, got {sizes}; trim them"
        )
        raise SampleError(msg, index=min(sizes))
    return sizes[0]


def check_count(found: int, wanted: int, where: str) -> None:
    """Check that there is one entry per sample.

    Raises:
        SampleError: There is not.
    """
    if found != wanted:
        msg = f"{where}: expected one per sample, {wanted}, got {found}; pass as many as inputs"
        raise SampleError(msg, index=min(found, wanted))


@dataclass(frozen=True, slots=True)
class Fault:
    """The first sample of a call that cannot enter, and why."""

    index: int
    message: str


def raise_first(*faults: Fault | None) -> None:
    """Refuse a call for the fault that comes first in the stream, if there is one.

    Raises:
        SampleError: There is one.
    """
    found = [fault for fault in faults if fault is not None]
    if found:
        first = min(found, key=lambda fault: fault.index)
        raise SampleError(first.message, index=first.index)


def find_not_finite(tree: Any, where: str, mask: Tensor | None = None) -> Fault | None:
    """Find the first sample, among those of ``mask``, that is not finite."""
    faults = []
    for tensor in trees.floats(tree):
        if is_finite(tensor.detach()):
            continue
        index = _first(~tensor.isfinite(), mask)
        if index is not None:
            value = tensor[index]
            got = value[~value.isfinite()].flatten()[0].item()
            msg = f"{where}: expected finite values, got {got} in sample {index}; leave it out"
            faults.append(Fault(index, msg))
    return min(faults, key=lambda fault: fault.index, default=None)


def find_bad_class(targets: Tensor, mask: Tensor, num_classes: int, ignored: int) -> Fault | None:
    """Find the first learned sample whose class index the loss would not accept."""
    if trees.can_carry_gradient(targets):  # class probabilities
        return None
    index = _first(((targets < 0) | (targets >= num_classes)) & (targets != ignored), mask)
    if index is None:
        return None
    got = targets[index].flatten().tolist()
    msg = f"targets: expected classes from 0 to {num_classes - 1}, got {got} in sample {index}"
    return Fault(index, f"{msg}; check the labels and the number of outputs")


def _first(bad: Tensor, mask: Tensor | None) -> int | None:
    samples = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    if mask is not None:
        samples = samples & mask.to(samples.device)
    return int(samples.nonzero()[0, 0]) if samples.any() else None


def learn_mask(learn: Any, num_samples: int, default: bool) -> Tensor:
    """Return which samples are learned, as a bool tensor (num_samples,) on the CPU.

    Raises:
        SampleError: They are no bools, or not one per sample.
    """
    if learn is None:
        return torch.full((num_samples,), default)
    mask = torch.as_tensor(learn, device="cpu")
    if mask.dtype != torch.bool:
        msg = f"learn: expected bools, got {mask.dtype}; compare or convert them first"
        raise SampleError(msg, index=0)
    mask = mask.expand(num_samples) if mask.dim() == 0 else mask
    check_count(mask.shape[0], num_samples, "learn")
    return mask
