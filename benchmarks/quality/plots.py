"""Draws what a run of the benchmark kept.

    python -m benchmarks.quality.plots quality.json docs/_static

Writes quality-delay.svg and quality-load.svg into the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.loads import FIXED, PLAN
from benchmarks.quality.results import ALL, FRESH, HELD, Cell, Results, load
from benchmarks.quality.streams import GENERATED

# Okabe and Ito's colours: distinct for colour-blind readers too.
COLORS = {
    "sequential": "#000000",
    "1f1b + own": "#0072b2",
    "1f1b + own, 8": "#0072b2",
    "1f1b + stashed": "#56b4e9",
    "lockstep + newest": "#d55e00",
    "lockstep + newest, 8": "#d55e00",
    "greedy + own, 8": "#009e73",
    PLAN: "#cc79a7",
}
MARKERS = dict(zip(COLORS, "sooDvv^*", strict=True))
ANSWERS = {HELD: "skipped: last prediction", FRESH: "skipped: fresh forward"}


def main(source: Path, folder: Path) -> None:
    """Draw both figures."""
    # Text stays text, and equal results give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "quality", "font.size": 9}):
        results = load(source)
        for name, figure in (("delay", draw_delay(results)), ("load", draw_load(results))):
            figure.savefig(folder / f"quality-{name}.svg", metadata={"Date": None})


def draw_delay(results: Results) -> Figure:
    """Draw losses over the number of stages, a panel per stream."""
    streams = results.streams(ALL)
    figure = Figure(figsize=(9.6, 2.9 * -(-len(streams) // 3)), layout="constrained")
    panels = list(figure.subplots(-(-len(streams) // 3), 3, squeeze=False).flat)
    for axes, stream in zip(panels, streams, strict=False):
        _draw_stages(axes, results.find(stream, ALL))
        axes.set_title(stream)
    for axes in panels[len(streams) :]:
        axes.set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_stages(axes: Axes, cells: Sequence[Cell]) -> None:
    sequential = next(cell for cell in cells if cell.contestant == "sequential")
    for name in dict.fromkeys(cell.contestant for cell in cells if cell is not sequential):
        own = [sequential, *(cell for cell in cells if cell.contestant == name)]
        ratios = [cell.relative_to(sequential) for cell in own]
        axes.errorbar(
            [cell.stages for cell in own],
            [middle for middle, _, _ in ratios],
            yerr=[
                [middle - least for middle, least, _ in ratios],
                [greatest - middle for middle, _, greatest in ratios],
            ],
            color=COLORS[name],
            marker=MARKERS[name],
            markersize=4,
            capsize=2,
            label=name,
        )
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_xscale("log", base=2)
    stages = sorted({cell.stages for cell in cells})
    axes.set_xticks(stages, [str(count) for count in stages])
    axes.set_xlabel("stages")
    axes.set_ylabel("loss / sequential loss")


def draw_load(results: Results) -> Figure:
    """Draw losses over the rate of arrivals, a column per stream, a row per kind of answer."""
    streams = [stream for stream in GENERATED if stream in results.streams(HELD)]
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    panels = figure.subplots(len(ANSWERS), len(streams), squeeze=False, sharex=True)
    for row, (way, meaning) in zip(panels, ANSWERS.items(), strict=True):
        for axes, stream in zip(row, streams, strict=True):
            _draw_loads(axes, results.find(stream, way))
            axes.set_title(f"{stream}; {meaning}")
    for axes in panels[-1]:
        axes.set_xlabel("arrivals / capacity of a sequential loop")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw_loads(axes: Axes, cells: Sequence[Cell]) -> None:
    for name in (*FIXED, PLAN):
        own = [cell for cell in cells if cell.contestant == name]
        axes.plot(
            [cell.load or 0.0 for cell in own],
            [cell.loss for cell in own],
            color=COLORS[name],
            marker=MARKERS[name],
            markersize=4,
            linestyle="--" if name == PLAN else "-",
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    greatest = max(cell.load or 0.0 for cell in cells)
    loads = [load for load in (0.5, 1, 2, 4, 8, 16) if load <= greatest]
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    losses = [cell.loss for cell in cells]
    ticks = [m * 10.0**e for e in range(-3, 2) for m in (1, 1.5, 2, 3, 5, 7)]
    shown = [tick for tick in ticks if 0.8 * min(losses) < tick < 1.25 * max(losses)]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_ylabel("mean squared error (target variance: 1)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
