"""What a stage holds: parameters, what its optimizer keeps of them, and buffers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamflow.pipeline.capture.optimizers import Formula, Settings, formula_of
from streamflow.pipeline.stages.stage import Stage
from streamflow.pipeline.stages.updates import settings_of
from streamflow.pipeline.torch_private import buffers_of

Place = Callable[[], Tensor]
"""Returns a tensor as it is now: some are replaced while the network runs eagerly."""


class Unsupported(Exception):  # no error: a way that is not taken
    """Why a stage is not compiled."""


class HeldTensors:
    """The tensors that a stage holds, and how they are learned.

    Attributes:
        parameters: By name.
        trainable: Names of those that may be learned.
        slots: What the optimizer keeps: names of a parameter and of a tensor of its state.
        buffers: By name.
        places: Of all of them, in this order.
        optimizer: None where there is no parameter.
        formula: Likewise.
        settings: What the optimizer's groups say beside learning rates.
        group_of: Which group a parameter is in.

    Raises:
        Unsupported: The optimizer has no formula, or a tensor is of a kind that is not compiled.
    """

    def __init__(self, stage: Stage) -> None:
        self.parameters = stage.parameters
        self.optimizer, self.formula = _known_optimizer(stage)
        self.settings = [] if self.optimizer is None else settings_without_rates(self.optimizer)
        self.group_of = _groups_by_name(self.optimizer, self.parameters)
        self.trainable = [n for n, p in self.parameters.items() if p.requires_grad]
        self.slots = [(n, key) for n in self.trainable for key in self._begun(n)]
        self.buffers = {
            name: Buffer(owner, key)
            for name, owner, key in stage.buffers.places
            if buffers_of(owner)[key] is not None
        }
        self.places: list[Place] = [
            *(_constant(p) for p in self.parameters.values()),
            *(self._kept(n, key) for n, key in self.slots),
            *self.buffers.values(),
        ]

    def __repr__(self) -> str:
        return f"<HeldTensors: {len(self.parameters)} parameters, {len(self.buffers)} buffers>"

    def now(self) -> list[Tensor]:
        """Return all tensors as they are now.

        Raises:
            Unsupported: One is of a kind that is not compiled.
        """
        held = [place().detach() for place in self.places]
        _check_plain(held)
        return held

    def dtype(self) -> torch.dtype:
        """Return the one dtype of all parameters, or the widest."""
        dtypes = {parameter.dtype for parameter in self.parameters.values()}
        return dtypes.pop() if len(dtypes) == 1 else torch.float64

    def states_of(self, name: str) -> list[str]:
        """Name what the optimizer keeps of a parameter once it has begun to learn it."""
        assert self.formula is not None
        return self.formula.state(self.settings[self.group_of[name]])

    def _kept(self, name: str, key: str) -> Place:
        assert self.optimizer is not None
        optimizer, parameter = self.optimizer, self.parameters[name]
        return lambda: optimizer.state[parameter][key]

    def _begun(self, name: str) -> list[str]:
        """Name what the optimizer keeps of a parameter, and already has."""
        assert self.optimizer is not None
        has = self.optimizer.state.get(self.parameters[name], {})
        return [key for key in self.states_of(name) if isinstance(has.get(key), Tensor)]

    def buffers_at(self, indices: Iterable[int]) -> dict[str, int]:
        """Return by name which buffers lie at such places, and where."""
        names = list(self.buffers)
        first = len(self.places) - len(names)
        return {names[index - first]: index for index in indices}

    def counted(self, learned: Iterable[str]) -> list[list[nn.Parameter]]:
        """Return the parameters among those learned whose optimizer counts steps, by group."""
        counted: list[list[nn.Parameter]] = [[] for _ in self.settings]
        if self.formula is not None and self.formula.counts:
            for name in learned:
                counted[self.group_of[name]].append(self.parameters[name])
        return counted


def settings_without_rates(optimizer: torch.optim.Optimizer) -> list[Settings]:
    """Return what the groups of an optimizer say beside their learning rates."""
    rates = ("lr", "initial_lr")
    return [
        {key: value for key, value in settings_of(group).items() if key not in rates}
        for group in optimizer.param_groups
    ]


def _constant(tensor: Tensor) -> Place:
    return lambda: tensor


@dataclass(frozen=True, slots=True)
class Buffer:
    """A place that a module has for a buffer, into which another may be put."""

    owner: nn.Module
    key: str

    def __call__(self) -> Tensor:
        """Return what is there now."""
        tensor = buffers_of(self.owner)[self.key]
        assert tensor is not None
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Replace what is there."""
        buffers_of(self.owner)[self.key] = tensor


def _known_optimizer(stage: Stage) -> tuple[torch.optim.Optimizer | None, Formula | None]:
    if not stage.parameters:
        return None, None
    optimizer = stage.updates.optimizer
    formula = None if optimizer is None else formula_of(optimizer)
    if formula is None:
        got = "no optimizer" if optimizer is None else type(optimizer).__name__
        msg = f"{got} is not among the optimizers that are compiled"
        raise Unsupported(msg)
    return optimizer, formula


def _groups_by_name(
    optimizer: torch.optim.Optimizer | None, parameters: dict[str, nn.Parameter]
) -> dict[str, int]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [] if optimizer is None else optimizer.param_groups
    return {
        names[id(parameter)]: index
        for index, group in enumerate(groups)
        for parameter in group["params"]
    }


def _check_plain(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device}"
        is_plain = tensor.layout is torch.strided and not tensor.is_complex()
        if not is_plain or tensor.device.type != "cpu" or tensor.is_quantized:
            msg = f"it holds a tensor of {kind}"
            raise Unsupported(msg)
