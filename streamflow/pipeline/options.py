"""Options of a pipeline, checked before anything is built."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import OptionError
from streamflow.pipeline.schedule import BACKWARDS, SCHEDULES, orders

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Loss = Callable[..., Tensor]
Device = str | int | torch.device

EXECUTORS = ("auto", "inline", "threads")
CLIPPED = ("stage", "network")


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller asked for; see :class:`~streamflow.pipeline.Pipeline` for each.

    Raises:
        OptionError: A value cannot work, or does not go with another.
    """

    loss: Loss | None = None
    optimizer: OptimizerFactory | Sequence[OptimizerFactory] | None = None
    stages: int | str | Sequence[str] = 1
    rate: float | None = None
    schedule: str = "1f1b"
    backward: str = "own"
    executor: str = "auto"
    devices: Device | Sequence[Device] | None = None
    compile: str | bool = "auto"
    state: Sequence[str] = ()
    max_keys: int = 10_000
    seed: int = 0
    scheduler: SchedulerFactory | None = None
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    accumulate: int = 1
    clip_norm: float | None = None
    clip_over: str = "stage"
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        _check_choice("schedule", self.schedule, [*SCHEDULES])
        _check_choice("backward", self.backward, BACKWARDS)
        _check_choice("executor", self.executor, EXECUTORS)
        _check_choice("clip_over", self.clip_over, CLIPPED)
        _check_pair(self.schedule, self.backward)
        _check_stages(self.stages)
        _check_rate(self.rate, self.stages)
        _check_compile(self.compile)
        _check_learning(self.loss, self.optimizer)
        _check_learns(self)
        _check_count("accumulate", self.accumulate)
        _check_count("max_keys", self.max_keys)
        _check_positive("clip_norm", self.clip_norm)

    @property
    def num_stages(self) -> int | None:
        """Number of stages, where it is known before anything is measured."""
        if isinstance(self.stages, str):
            return None
        return self.stages if isinstance(self.stages, int) else len(self.stages) + 1

    def optimizer_of(self, stage_index: int) -> OptimizerFactory | None:
        """Return what makes the optimizer of a stage."""
        if isinstance(self.optimizer, Sequence):
            return self.optimizer[stage_index]
        return self.optimizer

    def clips_network(self, num_stages: int) -> bool:
        """Say whether gradients are clipped by a norm over several stages."""
        return self.clip_norm is not None and self.clip_over == "network" and num_stages > 1

    def check_num_stages(self, num_stages: int) -> None:
        """Raise unless all options can work with so many stages.

        Raises:
            OptionError: They cannot.
        """
        for where, value in (("optimizer", self.optimizer), ("devices", self.devices)):
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            if is_list and len(value) != num_stages:  # type: ignore[arg-type]
                msg = (
                    f"{where}: expected one per stage, {num_stages}, got {len(value)}; "  # type: ignore[arg-type]
                    "pass as many, or a single one for all stages"
                )
                raise OptionError(msg)
        has_lag = any(order.lag for order in orders(self.schedule, num_stages))
        if self.clips_network(num_stages) and has_lag:
            msg = (
                f"clip_over: expected 'stage' with {num_stages} stages in {self.schedule}, got "
                "'network', whose norm is known only after the last stages' updates; "
                "clip per stage, or choose schedule='sequential' or one stage"
            )
            raise OptionError(msg)


def _check_choice(where: str, got: Any, known: Sequence[str]) -> None:
    if got not in known:
        choices = " or ".join(repr(name) for name in known)
        msg = f"{where}: expected {choices}, got {got!r}; choose one of them"
        raise OptionError(msg)


def _check_pair(schedule: str, backward: str) -> None:
    if backward in SCHEDULES[schedule].backwards:
        return
    if backward == "newest":
        cure = 'choose schedule="lockstep"'
    else:
        cure = 'choose backward="newest", or schedule="1f1b" for half the lag'
    msg = (
        f"backward: expected newest with lockstep and only there, got {backward} with "
        f"{schedule}; {cure}"
    )
    raise OptionError(msg)


def _check_stages(stages: Any) -> None:
    is_count = isinstance(stages, int) and not isinstance(stages, bool) and stages > 0
    is_names = (
        isinstance(stages, Sequence)
        and not isinstance(stages, str)
        and all(isinstance(name, str) for name in stages)
    )
    if not is_count and not is_names and stages != "auto":
        msg = (
            f"stages: expected an int from 1, 'auto' or a list of module names, got {stages!r}; "
            "pass stages=1 for no pipelining"
        )
        raise OptionError(msg)


def _check_rate(rate: Any, stages: Any) -> None:
    _check_positive("rate", rate)
    if rate is not None and stages != "auto":
        msg = f"rate: expected none with stages={stages!r}, got {rate}; pass stages='auto'"
        raise OptionError(msg)


def _check_compile(compile: Any) -> None:
    if not isinstance(compile, bool) and compile != "auto":
        msg = f"compile: expected 'auto', True or False, got {compile!r}; choose one of them"
        raise OptionError(msg)


def _check_learning(loss: Any, optimizer: Any) -> None:
    if loss is not None and not callable(loss):
        msg = f"loss: expected a callable or None, got {loss!r}; pass for example F.mse_loss"
        raise OptionError(msg)
    factories = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    if optimizer is not None and not all(callable(factory) for factory in factories):
        msg = (
            "optimizer: expected a callable that takes parameters, or one per stage, "
            f"got {optimizer!r}; pass for example partial(torch.optim.SGD, lr=0.01)"
        )
        raise OptionError(msg)
    if (loss is None) != (optimizer is None):
        missing, given = ("loss", "optimizer") if loss is None else ("optimizer", "loss")
        msg = f"{missing}: expected one, as {given} is given, got None; pass both or neither"
        raise OptionError(msg)


def _check_learns(options: Options) -> None:
    """Raise where something shapes the updates although there are none."""
    if options.loss is not None:
        return
    for where, is_given in (
        ("scheduler", options.scheduler is not None),
        ("groups", bool(options.groups)),
        ("clip_norm", options.clip_norm is not None),
        ("accumulate", options.accumulate != 1),
    ):
        if is_given:
            msg = f"{where}: expected none without a loss, got one; pass a loss and an optimizer"
            raise OptionError(msg)


def _check_count(where: str, got: Any) -> None:
    if not isinstance(got, int) or isinstance(got, bool) or got < 1:
        msg = f"{where}: expected an int from 1, got {got!r}; correct it"
        raise OptionError(msg)


def _check_positive(where: str, got: Any) -> None:
    if got is not None and not (isinstance(got, int | float) and 0 < got < float("inf")):
        msg = f"{where}: expected a positive number or None, got {got!r}; correct it"
        raise OptionError(msg)
