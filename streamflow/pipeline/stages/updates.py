"""The updates of one stage: its optimizer, what it accumulates, its clipping and its schedule."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.errors import OptionError
from streamflow.pipeline.options import Options


class Updates:
    """Turns the gradients of samples into updates of a stage's parameters.

    A gradient is offered by the backward of a sample, and then accepted or withdrawn; every
    ``accumulate`` accepted ones make one update by their mean.

    Attributes:
        made: Updates made.
        skipped: Samples that were to be learned but whose loss or gradient was not finite.
        pending: Gradients accepted since the last update.
        declared_groups: Settings of the optimizer's groups as they were made.
        declared_schedule: State of the scheduler as it was made.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        options: Options,
        stage_index: int,
        *,
        clip_norm: float | None,
    ) -> None:
        factory = options.optimizer_of(stage_index)
        self.parameters = parameters
        self.made = self.skipped = self.pending = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.declared_groups: list[dict[str, Any]] = []
        self.declared_schedule: dict[str, Any] = {}
        if factory is not None and parameters:
            self.optimizer = factory(parameter_groups(parameters, options))
            self.declared_groups = [settings_of(group) for group in self.optimizer.param_groups]
            if options.scheduler is not None:
                self.scheduler = options.scheduler(self.optimizer)
                _check_scheduler(self.scheduler)
                self.declared_schedule = dict(self.scheduler.state_dict())
        self._accumulate = options.accumulate
        self._clip_norm = clip_norm
        self._trainable = [p for p in parameters.values() if p.requires_grad]
        self._offered: Sequence[Tensor | None] | None = None

    def offer(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradient of one sample, one entry per parameter that learns."""
        self._offered = gradients

    def withdraw(self) -> None:
        """Forget the gradient that was offered."""
        self._offered = None

    @property
    def is_offered(self) -> bool:
        """Whether a gradient waits to be accepted."""
        return self._offered is not None

    def accept(self) -> bool:
        """Add the offered gradient to the group; say whether the group is complete."""
        assert self._offered is not None
        for parameter, gradient in zip(self._trainable, self._offered, strict=True):
            if parameter.grad is None or gradient is None:
                parameter.grad = parameter.grad if gradient is None else gradient
            else:
                parameter.grad = parameter.grad + gradient
        self._offered = None
        self.pending += 1
        if self.pending < self._accumulate:
            return False
        if self._accumulate > 1:
            self.scale(1 / self._accumulate)
        return True

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the complete group."""
        return [p.grad for p in self._trainable if p.grad is not None]

    def scale(self, factor: Tensor | float) -> None:
        """Multiply the gradients of the group."""
        for parameter in self._trainable:
            if parameter.grad is not None:
                at = factor.to(parameter.device) if isinstance(factor, Tensor) else factor
                parameter.grad = parameter.grad * at

    def apply(self) -> None:
        """Update the parameters by the complete group."""
        if self.optimizer is not None:
            if self._clip_norm is not None:
                clip([self], self._clip_norm)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        for parameter in self._trainable:
            parameter.grad = None
        self.pending = 0
        self.made += 1


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a group of parameters: learning rate and the like."""
    return {k: v for k, v in group.items() if k not in ("params", "param_names")}


def clip(stages: Sequence[Updates], max_norm: float) -> None:
    """Scale the gradients of some stages down to a norm over all of them."""
    gradients = [gradient for updates in stages for gradient in updates.gradients()]
    if not gradients:
        return
    factor = norm_factor(gradients, max_norm)
    # Never in place, unlike torch: gradients of one sample may share their memory.
    for updates in stages:
        updates.scale(factor)


def norm_factor(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Return what scales gradients down to a norm over all of them."""
    norm = nn.utils.get_total_norm(list(gradients))
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def parameter_groups(parameters: dict[str, nn.Parameter], options: Options) -> list[Any]:
    """Give every parameter the settings of the first pattern that its name matches."""
    if not options.groups:
        return list(parameters.values())
    matched: dict[str | None, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        pattern = next((p for p in options.groups if fnmatchcase(name, p)), None)
        matched.setdefault(pattern, []).append(parameter)
    return [
        {"params": members, **(options.groups[pattern] if pattern is not None else {})}
        for pattern, members in matched.items()
    ]


def check_groups(module: nn.Module, options: Options) -> None:
    """Raise unless every pattern is the first match of a parameter of the network.

    Raises:
        OptionError: A pattern matches nothing, or nothing that is left.
    """
    names = [name for name, _ in module.named_parameters()]
    used = {next((p for p in options.groups if fnmatchcase(name, p)), None) for name in names}
    for pattern in options.groups:
        if pattern not in used:
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            msg = (
                f"groups: expected patterns of parameter names, the first match counting, got "
                f"{pattern!r}, which is left without any; the names are {known}"
            )
            raise OptionError(msg)


def _check_scheduler(scheduler: Any) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        msg = (
            "scheduler: expected one that steps without a metric, got ReduceLROnPlateau; "
            "a stage does not know the loss, choose for example StepLR"
        )
        raise OptionError(msg)
    if not callable(getattr(scheduler, "step", None)):
        msg = (
            f"scheduler: expected a callable that makes a scheduler of an optimizer, got one that "
            f"returns {scheduler!r}; pass for example partial(StepLR, step_size=1000)"
        )
        raise OptionError(msg)
