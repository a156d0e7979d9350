"""The report at the end of a run: as plain data, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streamflow.observe.live import number, retries
from streamflow.runtime.stats import CheckpointStats, Stats

MOST_PARTITIONS = 16
"""Of which a report for a terminal tells the positions."""


def report_data(graph: str, stats: Stats | None, failure: str | None = None) -> dict[str, Any]:
    """Return all that is known about a run, ready for JSON.

    Args:
        graph: Name of the graph.
        stats: The run at its end; ``None`` if it did not open.
        failure: Why it failed, if it did.
    """
    data: dict[str, Any] = {"graph": graph, "failure": failure}
    if stats is None:
        return data | {"state": "failed"}
    nodes = {name: asdict(node) for name, node in stats.nodes.items()}
    for node in nodes.values():
        node["report"] = {key: item for key, item in node["report"].items() if key != "history"}
    return data | {
        "state": stats.state,
        "elapsed": stats.elapsed,
        "records_per_second": stats.received / stats.elapsed if stats.elapsed else 0.0,
        "received": stats.received,
        "delivered": stats.delivered,
        "rejected": stats.rejected,
        "dropped": stats.dropped,
        "nodes": nodes,
        "checkpoints": None if stats.checkpoints is None else asdict(stats.checkpoints),
    }


def report_tables(graph: str, stats: Stats) -> RenderableType:
    """Return the report for a terminal: the nodes, and each model's score beside the baselines."""
    rate = stats.received / stats.elapsed if stats.elapsed else 0.0
    heading = f"{graph}: {stats.received:,} records in {stats.elapsed:.1f} s, {rate:,.0f}/s"
    parts: list[RenderableType] = [Text(heading), _nodes_table(stats)]
    if stats.dropped:
        parts.append(_drops_table(stats))
    parts += [Text(line) for line in [*retries(stats), *_positions(stats), *_own_figures(stats)]]
    if stats.checkpoints is not None:
        parts.append(Text(_checkpoints(stats.checkpoints)))
    for name, node in stats.nodes.items():
        if learning := node.report.get("learning"):
            parts.append(Text(f"{name}: {learning}"))
        if comparison := node.report.get("comparison"):
            parts.append(Text(f"{name}: {verdict(comparison)}"))
        if river := node.report.get("river"):
            parts.append(Text(f"{name}: {_river(river)}"))
        if score := node.report.get("score"):
            is_without_target = node.report.get("samples", 0) > 1 and not score["scored"]
            without = f"{name}: nothing scored, as no record had a target; check its name"
            parts.append(Text(without) if is_without_target else _score_table(name, score))
    return Group(*parts)


def _nodes_table(stats: Stats) -> Table:
    table = Table("node", "kind")
    for column in ("received", "sent", "rejected", "skipped"):
        table.add_column(column, justify="right")
    for name, node in stats.nodes.items():
        counts = (node.received, node.sent, node.rejected, node.skipped)
        table.add_row(name, node.kind, *(f"{count:,}" for count in counts))
    return table


def _drops_table(stats: Stats) -> Table:
    """Return one row for each edge that has dropped records."""
    table = Table("edge", "overflow", title="dropped for want of room", title_justify="left")
    for column in ("sent", "taken", "dropped"):
        table.add_column(column, justify="right")
    for name, node in stats.nodes.items():
        for sender, edge in node.edges.items():
            if edge.dropped:
                counts = (edge.sent, edge.taken, edge.dropped)
                table.add_row(
                    f"{sender} -> {name}", edge.overflow, *(f"{count:,}" for count in counts)
                )
    return table


def _positions(stats: Stats) -> list[str]:
    """Return for each source with partitions how far each of them has come, or the first ones."""
    lines = []
    for name, node in stats.nodes.items():
        ends = [f"{place} at {end:,}" for place, end in node.positions.items() if place]
        left = len(ends) - MOST_PARTITIONS
        more = [f"and {left:,} more partitions"] if left > 0 else []
        if ends:
            lines.append(f"{name} goes on at: {', '.join([*ends[:MOST_PARTITIONS], *more])}")
    return lines


def _own_figures(stats: Stats) -> list[str]:
    """Return what nodes count themselves, of models what they left out, where it is not zero."""
    return [
        f"{name}: {count:,} {what}"
        for name, node in stats.nodes.items()
        for what, count in node.report.items()
        if node.kind != "model" or what == "incomplete"
        if count and isinstance(count, int | float)
    ]


def _checkpoints(made: CheckpointStats) -> str:
    failed = f", {made.failed:,} failed" if made.failed else ""
    why = f"; the last one: {made.failure}" if made.failure else ""
    return f"checkpoints: {made.taken:,} taken{failed}, streams paused for {made.paused:.2f} s{why}"


def _score_table(name: str, score: Mapping[str, Any]) -> Table:
    """Return one column for the model and each baseline, over all samples and over the window."""
    window = min(score["window"], score["scored"])
    table = Table("", title=f"{name}: {score['scored']:,} scored", title_justify="left")
    cumulative = score["cumulative"]
    for column in cumulative:
        table.add_column(column.replace("_", " "), justify="right")
    for scope, suffix in (("cumulative", ""), ("windowed", f", last {window:,}")):
        for metric in cumulative["model"]:
            numbers = [number(score[scope][column][metric]) for column in cumulative]
            table.add_row(metric.replace("_", " ") + suffix, *numbers)
    return table


def verdict(comparison: Mapping[str, Any]) -> str:
    """Return in a sentence which of two models is better, and how sure that is."""
    means = [f"{name} {number(mean)}" for name, mean in comparison["means"].items()]
    loss = f"mean {comparison['loss']}" + ("" if comparison["loss"] == "mistake" else " error")
    found = f"{comparison['compared']:,} compared, {loss} of {' and '.join(means)}"
    if not comparison["p_values"]:
        return f"{found}; too few to tell which is better"
    tests = ", ".join(f"{name} p = {p:.2g}" for name, p in comparison["p_values"].items())
    if not comparison["is_significant"]:
        return f"{found}; the difference is not significant ({tests})"
    return f"{found}; {comparison['better']} is better, which is significant ({tests})"


def _river(said: Mapping[str, Any]) -> str:
    """Return what River's metrics and detector say."""
    parts = [f"{name} {number(value)}" for name, value in said["metrics"].items()]
    if drift := said.get("drift"):
        last = f", the last after {drift['at'][-1]:,} records" if drift["at"] else ""
        parts.append(f"{drift['detector']} found {drift['found']:,} drifts{last}")
    return ", ".join(parts)
