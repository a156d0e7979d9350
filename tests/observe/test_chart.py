from pathlib import Path
from xml.etree import ElementTree

import pytest

from streamflow.observe.chart import Lines, bar_chart, line_chart, terminal_chart

PLACES = [10, 20, 30, 40]
LINES: Lines = {"model": [None, 0.5, 0.7, 0.9], "no_change": [0.4, None, 0.4, 0.5]}


def test_a_picture_is_a_valid_png(tmp_path: Path) -> None:
    path = tmp_path / "score.png"
    line_chart(path, PLACES, LINES, title="accuracy")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1200, 600)
    assert content.endswith(b"IEND\xaeB`\x82")


def test_a_picture_has_all_texts_and_curves(tmp_path: Path) -> None:
    import matplotlib as mpl

    path = tmp_path / "score.svg"
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        line_chart(path, PLACES, LINES, title="Elec2", x_label="samples", y_label="accuracy")
    texts = {element.text for element in ElementTree.parse(path).iter() if element.text}
    assert {"Elec2", "samples", "accuracy", "model", "no_change"} <= texts


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    import matplotlib as mpl

    path = tmp_path / "ratios.svg"
    with mpl.rc_context({"svg.fonttype": "none"}):
        bar_chart(path, {"loop": 1.0, "compiled": 4.0}, title="price", label="ratio")
    tree = ElementTree.parse(path)
    texts = {element.text for element in tree.iter() if element.text}
    assert {"price", "ratio", "loop", "compiled", "1.00", "4.00"} <= texts
    drawn = [element.get("d", "") for element in tree.iter() if element.get("clip-path")]
    widths = []
    for path_data in drawn:
        places = [float(part) for part in path_data.split() if part not in "MLz"][::2]
        widths.append(max(places) - min(places))
    assert widths[1] == pytest.approx(4 * widths[0])


def test_a_picture_of_nothing_yet(tmp_path: Path) -> None:
    line_chart(tmp_path / "score.svg", [], {"model": []})
    assert ElementTree.parse(tmp_path / "score.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("width", [60, 80])
def test_terminal_chart_has_legend_title_and_curves(width: int) -> None:
    chart = terminal_chart(PLACES, LINES, title="accuracy", width=width, height=15)
    for text in ("accuracy", "model", "no_change", "●", "○", "0.90", "40"):
        assert text in chart
    assert "\x1b" not in chart
    lines = chart.splitlines()
    assert len(lines) == 15
    assert max(map(len, lines)) <= width


def test_terminal_charts_do_not_mix() -> None:
    terminal_chart(PLACES, {"first": [1, 2, 3, 4]})
    assert "first" not in terminal_chart(PLACES, {"second": [1, 2, 3, 4]})
