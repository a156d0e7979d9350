"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.quality.learning import Scheme
from benchmarks.quality.loads import FIXED, PLAN, STAGE_COUNTS, capacity, sequential_period
from benchmarks.quality.results import ALL, FRESH, HELD, Cell, Results, mean

# A plan counts as equal to the best contestant where its loss is at most so many times the best's.
EQUAL = 1.01
WAYS = {HELD: "the last prediction made", FRESH: "a forward with the weights of the moment"}


def delay_tables(results: Results) -> str:
    """Say what delay costs on every stream."""
    parts = []
    for stream in results.streams(ALL):
        cells = results.find(stream, ALL)
        sequential = next(cell for cell in cells if cell.contestant == "sequential")
        parts.append(f"### {stream}\n\n{_summary(results, sequential)}\n")
        parts.append(_delay_table(cells, sequential))
    return "\n".join(parts)


def _summary(results: Results, sequential: Cell) -> str:
    base = results.baselines[sequential.stream]
    text = f"Sequential: loss {sequential.loss:.4f} at learning rate {sequential.rate:.2g}"
    if sequential.accuracies is None:
        return f"{text}; predicting zero: {base:.4f}."
    return (
        f"{text}, accuracy {mean(sequential.accuracies):.4f}; "
        f"accuracy of predicting the class before: {base:.4f}."
    )


def _delay_table(cells: Sequence[Cell], sequential: Cell) -> str:
    counts = sorted({cell.stages for cell in cells} - {1})
    names = list(dict.fromkeys(cell.contestant for cell in cells if cell is not sequential))
    found = {(cell.contestant, cell.stages): cell for cell in cells}
    has_classes = sequential.accuracies is not None
    header = ["loss relative to sequential", *(f"{count} stages" for count in counts)]
    if has_classes:
        header += [f"accuracy, {count} stages" for count in counts]
    header += [f"rate, {count} stages" for count in counts]
    rows = []
    for name in names:
        own = [found[name, count] for count in counts]
        row = [name, *(_ratio(cell.relative_to(sequential)) for cell in own)]
        if has_classes:
            row += [f"{mean(cell.accuracies or ()):.4f}" for cell in own]
        rows.append([*row, *(_rate(cell) for cell in own)])
    return table(header, rows)


def _ratio(values: tuple[float, float, float]) -> str:
    middle, least, greatest = values
    return f"{middle:.2f} ({least:.2f} to {greatest:.2f})"


def _rate(cell: Cell) -> str:
    return f"{cell.rate:.2g}{' (edge)' if cell.is_on_edge else ''}"


def cost_table(results: Results) -> str:
    """Say what the stages' actions take and which load each scheme can bear."""
    costs = results.costs
    rows = []
    for count in (count for count in STAGE_COUNTS if count in costs):
        first, last = costs[count][0], costs[count][-1]
        times = (first.forward, first.kept_forward, first.backward, first.late_backward)
        schemes = (("greedy", "own"), ("1f1b", "own"), ("lockstep", "newest"))
        rows.append(
            [
                str(count),
                *(f"{seconds * 1e6:.0f}" for seconds in times),
                f"{(last.kept_forward + last.backward) * 1e6:.0f}",
                *(f"{capacity(costs, Scheme(*scheme, count)):.2f}" for scheme in schemes),
            ]
        )
    header = ["stages", "forward", "forward with graph", "backward", "late backward", "last stage"]
    header += ["capacity, greedy + own", "1f1b + own", "lockstep + newest"]
    text = f"Sequential loop: {1 / sequential_period(costs):,.0f} samples/s. Microseconds of the "
    return f"{text}first stage; of the last a forward and a backward.\n\n{table(header, rows)}"


def load_tables(results: Results) -> str:
    """Say what every contestant loses at every load, and how the plan compares."""
    first, *_ = streams = results.streams(HELD)
    # Durations do not depend on data: all streams lose the same samples.
    parts = ["### Share of samples learned\n", _taken_table(results.find(first, HELD))]
    for stream in streams:
        for way, meaning in WAYS.items():
            cells = results.find(stream, way)
            parts.append(f"### {stream}, skipped samples answered with {meaning}\n")
            parts.append(_load_table(cells))
    return "\n".join(parts)


def _load_table(cells: Sequence[Cell]) -> str:
    loads = _loads(cells)
    rows = [
        [name, *(_mark(found, cells) for found in _row(cells, name))] for name in (*FIXED, PLAN)
    ]
    verdicts = [plan_by_best(cells, load)[0] for load in loads]
    rows.append(["plan by best contestant", *(f"{verdict:.3f}" for verdict in verdicts)])
    return table(["loss at load", *(f"{load:g}" for load in loads)], rows)


def _mark(cell: Cell, cells: Sequence[Cell]) -> str:
    assert cell.load is not None
    text = f"{cell.loss:.4f}{' (edge)' if cell.is_on_edge else ''}"
    is_best = cell.loss == min(other.loss for other in cells if other.load == cell.load)
    return f"**{text}**" if is_best else text


def _taken_table(cells: Sequence[Cell]) -> str:
    rows = [[name, *(f"{cell.taken:.0%}" for cell in _row(cells, name))] for name in (*FIXED, PLAN)]
    rows.append(["stages of the plan", *(str(cell.stages) for cell in _row(cells, PLAN))])
    return table(["share at load", *(f"{load:g}" for load in _loads(cells))], rows)


def plan_by_best(cells: Sequence[Cell], load: float) -> tuple[float, str]:
    """Return the plan's loss by the least loss of all at a load, and who has that."""
    present = [cell for cell in cells if cell.load == load]
    best = min(present, key=lambda cell: cell.loss)
    planned = next(cell for cell in present if cell.contestant == PLAN)
    return planned.relative_to(best)[0], best.contestant


def verdicts(results: Results) -> str:
    """Name every load at which the plan is worse than another contestant."""
    lines = []
    for stream in results.streams(HELD):
        for way in WAYS:
            cells = results.find(stream, way)
            for load in _loads(cells):
                ratio, best = plan_by_best(cells, load)
                if ratio > EQUAL:
                    lines.append(f"- {stream}, {way}, load {load:g}: {ratio:.3f} of {best}")
    return "\n".join(lines) or "- at every load the plan is best or equal"


def _loads(cells: Iterable[Cell]) -> list[float]:
    return sorted({cell.load for cell in cells if cell.load is not None})


def _row(cells: Sequence[Cell], name: str) -> list[Cell]:
    own = [cell for cell in cells if cell.contestant == name]
    return sorted(own, key=lambda cell: cell.load or 0.0)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with figures to the right of names."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
