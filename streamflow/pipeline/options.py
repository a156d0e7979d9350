"""Options of a pipeline, checked before anything is built."""

from collections.abc import Sequence
from typing import Any

from streamflow.errors import OptionError
from streamflow.pipeline.schedule import BACKWARDS, SCHEDULES


def check_schedule(schedule: str, backward: str) -> None:
    """Raise unless the two are known and fit together.

    Raises:
        OptionError: They do not.
    """
    _check_choice("schedule", schedule, SCHEDULES)
    _check_choice("backward", backward, BACKWARDS)
    if (schedule == "lockstep") != (backward == "newest"):
        if backward == "newest":
            cure = 'choose schedule="lockstep"'
        else:
            cure = 'choose backward="newest", or schedule="1f1b" for half the lag'
        msg = (
            f"backward: expected newest with lockstep and only there, got {backward} with "
            f"{schedule}; {cure}"
        )
        raise OptionError(msg)


def _check_choice(where: str, got: Any, known: Sequence[str]) -> None:
    if got not in known:
        msg = f"{where}: expected {_either(known)}, got {got!r}; choose one of them"
        raise OptionError(msg)


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def check_stages(stages: Any) -> None:
    """Raise unless ``stages`` is a positive int or a list of names."""
    is_count = isinstance(stages, int) and not isinstance(stages, bool) and stages > 0
    is_names = (
        isinstance(stages, Sequence)
        and not isinstance(stages, str)
        and all(isinstance(name, str) for name in stages)
    )
    if not is_count and not is_names:
        msg = (
            f"stages: expected an int from 1 or a list of module names, got {stages!r}; "
            "pass stages=1 for no pipelining"
        )
        raise OptionError(msg)


def check_executor(executor: Any) -> None:
    """Raise unless the executor is known."""
    _check_choice("executor", executor, ("auto", "inline", "threads"))


def check_compile(compile: Any) -> None:
    """Raise unless compilation is off or left to the pipeline."""
    if compile is not False and compile != "auto":
        msg = f"compile: expected 'auto' or False, got {compile!r}; both run eagerly for now"
        raise OptionError(msg)


def check_learning(loss: Any, optimizer: Any) -> None:
    """Raise unless loss and optimizer are both callable or both absent."""
    if loss is not None and not callable(loss):
        msg = f"loss: expected a callable or None, got {loss!r}; pass for example F.mse_loss"
        raise OptionError(msg)
    if optimizer is not None and not callable(optimizer):
        msg = (
            f"optimizer: expected a callable that takes parameters, got {optimizer!r}; "
            "pass for example partial(torch.optim.SGD, lr=0.01)"
        )
        raise OptionError(msg)
    if (loss is None) != (optimizer is None):
        missing, given = ("loss", "optimizer") if loss is None else ("optimizer", "loss")
        msg = f"{missing}: expected one, as {given} is given, got None; pass both or neither"
        raise OptionError(msg)


def check_clip_norm(clip_norm: Any) -> None:
    """Raise unless it is None or a positive number."""
    if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
        msg = f"clip_norm: expected a positive number or None, got {clip_norm!r}; correct it"
        raise OptionError(msg)


def refuse(where: str, got: Any, expected: Any) -> None:
    """Raise unless the option has the only value that it can have."""
    if got != expected:
        msg = f"{where}: expected {expected!r}, got {got!r}; leave it out"
        raise OptionError(msg)
