"""Curves and bars as a picture, in a file or in the terminal; both need the extra ``demo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

from streamflow.nodes.plugins import require

Lines = Mapping[str, Sequence[float | None]]
"""The points of each curve by its name; none where there is no point."""


def line_chart(
    path: str | Path,
    places: Sequence[float],
    lines: Lines,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> None:
    """Draw curves into a picture file, whose format its suffix names: PNG, SVG, PDF.

    Args:
        path: The file; it is replaced.
        places: The x of each point, the same for all curves.
        lines: The curves; the first stands out.
        title: Stands above.
        x_label: Names the x axis.
        y_label: Names the y axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_pictures()
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and picks a window

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    for index, (name, points) in enumerate(lines.items()):
        # matplotlib leaves a gap where a point is nan
        heights = [float("nan") if point is None else point for point in points]
        axes.plot(places, heights, label=name, linewidth=2.0 if index == 0 else 1.2)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def bar_chart(
    path: str | Path, values: Mapping[str, float], *, title: str = "", label: str = ""
) -> None:
    """Draw a bar for each value into a picture file, whose format its suffix names.

    Args:
        path: The file; it is replaced.
        values: Lengths by name, the first on top.
        title: Stands above.
        label: Names the axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_pictures()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.35 * len(values)), layout="constrained")
    axes: Any = figure.add_subplot()
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=label)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=150)


def require_pictures() -> None:
    """Raise unless pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require({"matplotlib": "streamflow-online[demo]"}, where="chart")


def terminal_chart(
    places: Sequence[float], lines: Lines, *, title: str = "", width: int = 80, height: int = 20
) -> str:
    """Return curves drawn with characters, without colours.

    Args:
        places: The x of each point, the same for all curves.
        lines: The curves.
        title: Stands above.
        width: Of the picture, in characters.
        height: Of the picture, in lines.

    Raises:
        MissingExtraError: plotext is not installed.
    """
    require({"plotext": "streamflow-online[demo]"}, where="chart")
    plotext: Any = import_module("plotext")  # it has no types
    figure = plotext.figure
    figure.clear()  # there is one for the whole process
    figure.plot_size(width, height)
    figure.title(title)
    for (name, points), marker in zip(lines.items(), cycle("●○+·"), strict=False):
        drawn = [pair for pair in zip(places, points, strict=True) if pair[1] is not None]
        if drawn:
            signal = figure.signal(*map(list, zip(*drawn, strict=True)), marker=marker)
            figure.draw(signal.lines().label(name))
    return str(plotext.uncolorize(figure.build()))
