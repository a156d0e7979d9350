"""What is expected of a network cut into stages: as data, as a table and as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from streamflow.pipeline.planning.costs import Cost

WIDTH = 100
"""Columns of a table."""


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer and its part of what its stage takes.

    Attributes:
        name: Name of the module.
        cost: Seconds of one sample.
        parameter_bytes: Size of its parameters.
        boundary_bytes: Size of the values that come out of it for one sample.
    """

    name: str
    cost: Cost
    parameter_bytes: int
    boundary_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A run of layers on one device.

    Attributes:
        layers: Its layers.
        lag: Updates between a sample's forward and the update which that sample causes.
        device: Where it computes.
        cost: Seconds of one sample as measured, with what the stage takes beyond its layers.
        memory_bytes: What it takes: weights, gradients, optimizer state, buffers, inputs held.
    """

    layers: tuple[PlannedLayer, ...]
    lag: int
    device: str
    cost: Cost
    memory_bytes: int

    @property
    def beyond(self) -> float:
        """Seconds that the stage takes beyond its layers, most of it Python and dispatch."""
        return max(self.cost.total - sum(layer.cost.total for layer in self.layers), 0.0)


@dataclass(frozen=True, slots=True)
class Tried:
    """A way to run the network that was measured.

    Attributes:
        num_stages: How many stages.
        executor: What ran them.
        rate: Samples per second.
    """

    num_stages: int
    executor: str
    rate: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How a network is run, and what that gives on this machine.

    Attributes:
        stages: First stage first.
        cuts: Modules to cut before; ``Pipeline(..., stages=plan.cuts)`` cuts there.
        schedule: In which order a stage performs its actions.
        backward: At which input and weights gradients are taken.
        executor: What runs the stages.
        rate: Samples per second while samples wait.
        wanted: The rate that was asked for, None for as many as possible.
        latency: Seconds from the entry of a sample to its prediction while no other is on its way.
        loaded_latency: The same while samples wait; a sample enters when its first forward begins.
        call: Seconds that a call of the pipeline takes beside those of its stages.
        limit: What keeps the rate from being higher.
        tried: What was measured to choose, first one stage inline.
        learning: How samples are learned and why, as far as that is known.
        is_compiled: Whether the rate is that of compiled code. Then what stages and layers cost is
            that of eager learning, all faster by as much as the whole is.
    """

    stages: tuple[PlannedStage, ...]
    cuts: tuple[str, ...]
    schedule: str
    backward: str
    executor: str
    rate: float
    wanted: float | None
    latency: float
    loaded_latency: float
    call: float
    limit: str
    tried: tuple[Tried, ...]
    learning: str = ""
    is_compiled: bool = False

    def __str__(self) -> str:
        return self.table()

    @property
    def is_fast_enough(self) -> bool:
        """Whether the expected rate reaches the wanted one."""
        return self.wanted is None or self.rate >= self.wanted

    def busy(self, stage: PlannedStage) -> float:
        """Return the fraction of time that a stage is busy at the expected rate."""
        return min(stage.cost.total * self.rate, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data; seconds, bytes, samples per second."""
        data = asdict(self)
        for stage, planned in zip(data["stages"], self.stages, strict=True):
            stage["busy"] = self.busy(planned)
        return {**data, "cuts": list(self.cuts), "is_fast_enough": self.is_fast_enough}

    def table(self) -> str:
        """Return the plan as text of at most 100 columns."""
        return "\n".join([*self._heading(), "", *_rows(self)])

    def svg(self) -> str:
        """Draw one bar per stage, made of its layers, as wide as the seconds of one sample."""
        return "\n".join(_picture(self))

    def _heading(self) -> Iterator[str]:
        count = len(self.stages)
        plural = "s" if count > 1 else ""
        wanted = "" if self.wanted is None else f" of {self.wanted:,.0f} wanted"
        yield (
            f"{count} stage{plural}, {self.executor}, {self.schedule}, {self.backward}: "
            f"{self.rate:,.0f} samples/s{wanted}"
        )
        yield f"limited by {self.limit}"
        yield (
            f"latency {seconds(self.latency)} unloaded, {seconds(self.loaded_latency)} while "
            f"samples wait; a call adds {seconds(self.call)}"
        )
        if self.is_compiled:
            yield f"{self.learning}; what parts of it cost is estimated from eager learning"
        elif self.learning:
            yield f"figures of eager learning; now it is {self.learning}"[:WIDTH]
        tried = (f"{t.num_stages} {t.executor} {t.rate:,.0f}" for t in self.tried)
        yield f"measured, samples/s by stages: {', '.join(tried)}"


_COLUMNS = (6, 30, 9, 9, 9, 9, 6, 11, 11)
_TITLES = (
    "stage",
    "layer",
    "forward",
    "backward",
    "update",
    "total",
    "busy",
    "parameters",
    "output",
)


def _rows(plan: Plan) -> Iterator[str]:
    yield _line(_TITLES)
    for index, stage in enumerate(plan.stages):
        where = f"{stage.device}, lag {stage.lag}, {size(stage.memory_bytes)}"
        yield _line((str(index), where, *_seconds_of(stage.cost), f"{plan.busy(stage):.0%}"))
        for layer in stage.layers:
            sizes = size(layer.parameter_bytes), size(layer.boundary_bytes)
            yield _line(("", f"  {layer.name}", *_seconds_of(layer.cost), "", *sizes))
        yield _line(("", "  the stage itself", "", "", "", seconds(stage.beyond)))


def _seconds_of(cost: Cost) -> list[str]:
    return [seconds(part) for part in (cost.forward, cost.backward, cost.update, cost.total)]


def _line(cells: Sequence[str]) -> str:
    """Align two columns to the left and figures to the right; long names lose their beginning."""
    parts = []
    for index, (cell, width) in enumerate(zip(cells, _COLUMNS, strict=False)):
        shown = cell if len(cell) <= width - (index < 2) else f"…{cell[len(cell) - width + 2 :]}"
        parts.append(shown.ljust(width) if index < 2 else shown.rjust(width))
    return "".join(parts).rstrip()


def seconds(value: float) -> str:
    """Return seconds with a unit and three digits."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def size(count_bytes: int) -> str:
    """Return bytes with a unit and three digits."""
    value, units = float(count_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}"


_GUTTER, _ROW, _FULL = 64, 44, 960
_COLORS = ("#9ec5fe", "#a3cfbb", "#ffda6a", "#c5b3e6", "#f1aeb5", "#9eeaf9")
_OWN_COLOR = "#ced4da"


def _picture(plan: Plan) -> Iterator[str]:
    longest = max(stage.cost.total for stage in plan.stages) or 1.0
    scale = (_FULL - _GUTTER - 8) / longest
    height = _ROW * len(plan.stages)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_FULL}" height="{height}" '
        'font-family="sans-serif" font-size="11">'
    )
    number = 0
    for index, stage in enumerate(plan.stages):
        y = index * _ROW
        yield f'<text x="4" y="{y + 18}">stage {index}</text>'
        yield f'<text x="4" y="{y + 32}" fill="#6c757d">{plan.busy(stage):.0%} busy</text>'
        x = float(_GUTTER)
        parts = [(layer.name, layer.cost.total, "") for layer in stage.layers]
        for name, length, color in [*parts, ("the stage itself", stage.beyond, _OWN_COLOR)]:
            width = length * scale
            yield _bar(x, y + 4, width, color or _COLORS[number % len(_COLORS)], name, length)
            x, number = x + width, number + 1
    yield "</svg>"


def _bar(x: float, y: int, width: float, color: str, name: str, length: float) -> str:
    shown = escape(name)
    label = (
        f'<text x="{x + 4:.1f}" y="{y + 22}">{shown}</text>' if width > 7 * len(name) + 8 else ""
    )
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 8}" stroke="white" '
        f'fill="{color}"><title>{shown}: {seconds(length)}</title></rect>{label}'
    )
