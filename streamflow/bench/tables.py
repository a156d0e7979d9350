"""What a bench has found, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streamflow.bench.results import Result, Row
from streamflow.pipeline.planning.plan import seconds, size


def result_tables(name: str, result: Result) -> RenderableType:
    """Return a table of all ways with their ratios to the best loop, the ratios as bars, and notes.

    Args:
        name: What the model is called.
        result: The result.
    """
    shape = " x ".join(map(str, result.shape))
    heading = (
        f"{name}: input {shape}, {result.num_parameters:,} parameters, "
        f"{result.samples_per_call} samples waiting for each call"
    )
    parts: list[RenderableType] = [Text(heading), _figures(result)]
    if result.best_loop is not None:
        parts.append(_bars(result))
    return Group(*parts, *(Text(note, style="dim") for note in _notes(result)))


def _figures(result: Result) -> Table:
    table = Table("way")
    for column in ("threads", "samples/s", "ratio", "spread", "p50", "p99", "memory"):
        table.add_column(column, justify="right")
    for row in result.rows:
        cells = _cells(row, result.ratio(row)) if row.is_measured else ["failed"]
        table.add_row(row.way.name, str(row.num_threads), *cells)
    return table


def _cells(row: Row, ratio: float | None) -> list[str]:
    return [
        f"{row.rate:,.0f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{row.spread:.0%}",
        seconds(row.latency_p50),
        seconds(row.latency_p99),
        size(row.memory_bytes),
    ]


def _bars(result: Result) -> Table:
    """Return a bar for each way that was measured, as long as its ratio."""
    ratios = {row.way.name: ratio for row in result.rows if (ratio := result.ratio(row))}
    highest = max(ratios.values())
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    for name, ratio in ratios.items():
        table.add_row(name, Bar(highest, 0, ratio), f"{ratio:.2f}")
    return table


def _notes(result: Result) -> Iterator[str]:
    if result.best_loop is not None:
        yield f"ratio: to {result.best_loop.way.name}, the faster loop; p50, p99: one sample alone"
    for row in result.rows:
        if row.failure:
            yield f"{row.way.name}: {row.failure}"
        elif row.way.is_compiled:
            cuts = f"cut before {', '.join(row.cuts)}; " if row.cuts else ""
            yield f"{row.way.name}: {cuts}{row.learning}"
