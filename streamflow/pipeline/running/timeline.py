"""What every stage did and when, as data and as the known picture of a pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ROW, GUTTER, WIDTH = 34, 64, 960
COLORS = {"forward": "#9ec5fe", "backward": "#a3cfbb"}


@dataclass(frozen=True, slots=True)
class Event:
    """One action: its stage, what it was, the sample's number, and when it began and ended."""

    stage: int
    action: str
    sample: int
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The actions of all stages while it recorded; times in seconds of ``time.perf_counter``."""

    num_stages: int
    events: list[Event] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Timeline of {self.num_stages} stages: {len(self.events)} events>"

    def svg(self, *, by_time: bool = True) -> str:
        """Draw one row per stage, to the scale of time or with one column per action.

        Without ``by_time`` an action stands in the first column after those it waited for, so that
        the picture of a deterministic schedule is the same on every machine.
        """
        events = sorted(self.events, key=lambda event: event.start)
        spans = _times(events) if by_time else _columns(events)
        end = max((stop for _, stop in spans), default=1.0) or 1.0
        scale = (WIDTH - GUTTER) / end
        shapes = [_row(stage) for stage in range(self.num_stages)]
        for event, (start, stop) in zip(events, spans, strict=True):
            shapes.append(_box(event, GUTTER + start * scale, (stop - start) * scale))
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        head += f'height="{ROW * self.num_stages}" font-family="sans-serif" font-size="11">'
        return "\n".join([head, *shapes, "</svg>"])


def _times(events: Sequence[Event]) -> list[tuple[float, float]]:
    origin = events[0].start if events else 0.0
    return [(event.start - origin, event.stop - origin) for event in events]


def _columns(events: Sequence[Event]) -> list[tuple[float, float]]:
    free: dict[int, int] = {}
    done: dict[tuple[int, str, int], int] = {}
    spans = []
    for event in events:
        before = event.stage - 1 if event.action == "forward" else event.stage + 1
        ready = done.get((before, event.action, event.sample), 0)
        ready = max(ready, done.get((event.stage, "forward", event.sample), 0))
        column = max(free.get(event.stage, 0), ready)
        free[event.stage] = done[event.stage, event.action, event.sample] = column + 1
        spans.append((float(column), column + 1.0))
    return spans


def _row(stage: int) -> str:
    return f'<text x="4" y="{stage * ROW + 20}">stage {stage}</text>'


def _box(event: Event, x: float, width: float) -> str:
    y = event.stage * ROW + 4
    label = f"{event.action[0].upper()}{event.sample}"
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 8}" stroke="white" '
        f'fill="{COLORS[event.action]}"><title>{label}</title></rect>'
        + (f'<text x="{x + 4:.2f}" y="{y + 17}">{label}</text>' if width > 22 else "")
    )


Record = Callable[[Event], None]
