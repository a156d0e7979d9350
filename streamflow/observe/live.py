"""One line about a run at this moment: rate, how far behind, what is wrong, score."""

from __future__ import annotations

from streamflow.runtime.stats import CheckpointStats, NodeStats, Stats


class LiveLine:
    """Makes the line; remembers the last one to tell the rate since then."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._processed = 0

    def next(self, stats: Stats) -> str:
        """Return the line for ``stats``."""
        seconds = stats.elapsed - self._elapsed
        rate = (stats.processed - self._processed) / seconds if seconds > 0 else 0.0
        self._elapsed, self._processed = stats.elapsed, stats.processed
        parts = [f"{stats.processed:,} records", f"{rate:,.0f}/s"]
        if stats.behind is not None:
            parts.append(f"{stats.behind:,} behind")
        if stats.rejected:
            parts.append(f"{stats.rejected:,} rejected")
        parts += drops(stats)
        parts += retries(stats)
        if stats.checkpoints is not None:
            parts.append(checkpoints(stats.checkpoints))
        parts += [score for name, node in stats.nodes.items() if (score := headline(name, node))]
        return " · ".join(parts) + (" · stopping" if stats.state == "stopping" else "")


def drops(stats: Stats) -> list[str]:
    """Return for each edge that has dropped records how many, where, and by which policy."""
    return [
        f"{edge.dropped:,} dropped ({sender} -> {name}, {edge.overflow})"
        for name, node in stats.nodes.items()
        for sender, edge in node.edges.items()
        if edge.dropped
    ]


def retries(stats: Stats) -> list[str]:
    """Return for each source and sink that tries something again what, since when and why."""
    return [f"{name}: {node.retrying}" for name, node in stats.nodes.items() if node.retrying]


def checkpoints(stats: CheckpointStats) -> str:
    """Return how old the newest checkpoint is, and whether the last one failed."""
    age = "no checkpoint yet" if stats.age is None else f"checkpoint {stats.age:.0f} s old"
    return f"{age} (the last one failed)" if stats.failure else age


def headline(name: str, node: NodeStats) -> str | None:
    """Return a model's first metric over its window, beside the no-change baseline's."""
    score = node.report.get("score")
    if not score or not score["scored"]:
        return None
    windowed = score["windowed"]
    metric = next(iter(windowed["model"]))
    model, baseline = windowed["model"][metric], windowed["no_change"][metric]
    return f"{name} {metric} {number(model)} (no change {number(baseline)})"


def number(value: float | None) -> str:
    """Return a metric for reading."""
    return "-" if value is None else f"{value:.4g}"
