import json
from io import StringIO

from rich.console import Console

from streamflow.bench.clock import Round
from streamflow.bench.results import Result, Row
from streamflow.bench.tables import result_tables
from streamflow.bench.ways import Way


def a_round(rate: float, p50: float = 0.001, memory_bytes: int = 2**20) -> Round:
    return Round(rate, p50, 2 * p50, 64, 10, memory_bytes, "compiled, up to 8 samples a call")


LOOP_1 = Way("loop-1", "loop", is_compiled=False, num_threads=1)
LOOP_2 = Way("loop-2", "loop", is_compiled=False, num_threads=2)
ROWS = (
    Row(LOOP_1, rounds=[a_round(100.0), a_round(400.0), a_round(200.0)]),
    Row(LOOP_2, 2, rounds=[a_round(150.0), a_round(160.0), a_round(170.0)]),
    Row(Way("compiled", "inline"), rounds=[a_round(900.0), a_round(1000.0, 0.0001, 2**21)]),
    Row(Way("threads-2", "threads", 2), cuts=("3",), rounds=[a_round(1.0)], failure="no room"),
)
RESULT = Result((3, 4), 1234, 5, 64, ROWS)


def shown(result: Result) -> str:
    console = Console(width=100, file=StringIO())
    console.print(result_tables("price", result))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_way_is_compared_with_the_faster_loop_by_medians() -> None:
    assert RESULT.best_loop is ROWS[0]
    assert [RESULT.ratio(row) for row in ROWS] == [1.0, 0.8, 4.75, None]
    assert ROWS[0].spread == 1.5
    assert (ROWS[2].latency_p50, ROWS[2].latency_p99) == (0.00055, 0.0011)
    assert ROWS[2].memory_bytes == 2**21


def test_the_table_shows_figures_ratios_and_failures() -> None:
    lines = shown(RESULT).splitlines()
    assert lines[0] == "price: input 3 x 4, 1,234 parameters, 64 samples waiting for each call"
    cells = {parts[1]: parts[2:-1] for line in lines if len(parts := line.split("│")) > 2}
    table = {name.strip(): [cell.strip() for cell in row] for name, row in cells.items()}
    assert table["compiled"] == ["1", "950", "4.75", "11%", "550 µs", "1.1 ms", "2 MiB"]
    assert table["threads-2"][:2] == ["1", "failed"]
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars["compiled"] > 4 * bars["loop-1"] > 4 * bars["loop-2"] > 0
    assert "threads-2" not in bars
    assert "threads-2: no room" in lines
    assert "compiled: compiled, up to 8 samples a call" in lines


def test_without_a_loop_there_are_no_ratios() -> None:
    rows = [Row(LOOP_1, failure="no gradient"), ROWS[2]]
    result = Result((3,), 1, 1, 8, rows)
    assert result.ratio(rows[1]) is None
    text = shown(result)
    assert "█" not in text
    assert "loop-1: no gradient" in text
    assert "950" in text
    assert result.to_dict()["best_loop"] is None


def test_plain_data_holds_every_round() -> None:
    data = json.loads(json.dumps(RESULT.to_dict()))
    assert (data["shape"], data["best_loop"], data["samples_per_call"]) == ([3, 4], "loop-1", 64)
    first, _, compiled, failed = data["ways"]
    assert (first["figures"]["lowest_rate"], first["figures"]["highest_rate"]) == (100.0, 400.0)
    assert [found["rate"] for found in compiled["rounds"]] == [900.0, 1000.0]
    assert (failed["figures"], failed["failure"], failed["cuts"]) == (None, "no room", ["3"])
