"""What layers and stages cost, as data: seconds of one sample, and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that one sample takes; ``backward`` has the second forward where there is one."""

    forward: float = 0.0
    backward: float = 0.0
    update: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.update + other.update,
        )

    @property
    def total(self) -> float:
        """Seconds of all three actions."""
        return self.forward + self.backward + self.update

    def scaled(self, factor: float) -> "Cost":
        """Return this cost times a factor."""
        return Cost(self.forward * factor, self.backward * factor, self.update * factor)

    def with_lag(self, lag: int) -> "Cost":
        """Return this cost of a stage without lag as that of one with a lag: forward twice."""
        return Cost(self.forward, self.backward + self.forward * (lag > 0), self.update)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a cut needs to know of a layer.

    Attributes:
        name: Name of the module.
        costs: In a stage without lag, one entry for each kind of device.
        parameter_bytes: Size of its parameters.
        state_bytes: Size of what comes with them: gradients, the optimizer's state, buffers.
        boundary_bytes: Size of the values of one sample that cross a cut after it.
        transfer: Seconds that these values take to another device.
        may_cut: Whether a cut before it is allowed.
    """

    name: str
    costs: tuple[Cost, ...]
    parameter_bytes: int = 0
    state_bytes: int = 0
    boundary_bytes: int = 0
    transfer: float = 0.0
    may_cut: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """Where a stage may run.

    Attributes:
        name: As torch names it.
        kind: Which entry of the costs holds here.
        memory_bytes: How much one stage may take, None for any amount.
    """

    name: str
    kind: int = 0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A chain of layers and the devices for its stages.

    Attributes:
        layers: In the order in which the network runs.
        devices: One per stage in the order of stages, or a single one for all of them.
        fixed: What a stage without lag costs beyond its layers, one entry for each kind of device;
            the update only where the stage has parameters.
        input_bytes: Size of one sample.
    """

    layers: tuple[Layer, ...]
    devices: tuple[Device, ...]
    fixed: tuple[Cost, ...]
    input_bytes: int = 0

    @property
    def max_stages(self) -> int:
        """Count of stages that layers and devices allow."""
        pieces = 1 + sum(layer.may_cut for layer in self.layers[1:])
        return pieces if len(self.devices) == 1 else min(pieces, len(self.devices))

    def names(self, starts: Sequence[int]) -> tuple[str, ...]:
        """Name the layers at some places."""
        return tuple(self.layers[start].name for start in starts)

    def device(self, stage_index: int) -> Device:
        """Return where a stage runs."""
        return self.devices[stage_index if len(self.devices) > 1 else 0]

    def cost(self, first: int, stop: int, stage_index: int, lag: int) -> Cost:
        """Return what layers ``first`` to ``stop`` cost as a stage, without transfers."""
        kind = self.device(stage_index).kind
        layers = self.layers[first:stop]
        fixed = self.fixed[kind]
        if not any(layer.parameter_bytes for layer in layers):
            fixed = Cost(fixed.forward, fixed.backward)
        return sum((layer.costs[kind] for layer in layers), fixed).with_lag(lag)

    def memory(self, first: int, stop: int, lag: int, *, stashes: bool) -> int:
        """Return the bytes that layers ``first`` to ``stop`` take as a stage."""
        layers = self.layers[first:stop]
        weights = sum(layer.parameter_bytes for layer in layers)
        held = self.layers[first - 1].boundary_bytes if first else self.input_bytes
        states = sum(layer.state_bytes for layer in layers)
        return weights * (1 + (lag if stashes else 0)) + states + (lag + 1) * held
