import json
from io import StringIO

from rich.console import Console

from streamflow.observe.report import report_data, report_tables
from streamflow.runtime.stats import CheckpointStats, EdgeStats, NodeStats, Stats

SCORE = {
    "scored": 1200,
    "window": 1000,
    "cumulative": {
        "model": {"accuracy": 0.75, "log_loss": 0.25, "kappa": None},
        "no_change": {"accuracy": 0.5, "log_loss": 0.5, "kappa": -0.0000814312},
    },
    "windowed": {
        "model": {"accuracy": 0.875, "log_loss": 0.125, "kappa": 0.7},
        "no_change": {"accuracy": 0.625, "log_loss": 0.375, "kappa": 0.0},
    },
}
NODES = {
    "in": NodeStats("source", received=1234, sent=1230, rejected=4, skipped=5),
    "m": NodeStats(
        "model",
        received=1230,
        sent=1230,
        rejected=0,
        skipped=0,
        report={"score": SCORE, "history": []},
    ),
    "out": NodeStats("sink", received=1230, sent=1230, rejected=0, skipped=0),
}


def test_the_report_is_plain_data_without_histories() -> None:
    data = report_data("g", Stats("finished", 2.0, NODES))
    assert json.loads(json.dumps(data)) == data
    assert data["records_per_second"] == 617.0
    assert (data["received"], data["delivered"], data["rejected"]) == (1234, 1230, 4)
    assert data["nodes"]["m"]["report"] == {"score": SCORE}
    assert (data["state"], data["failure"]) == ("finished", None)


def test_a_run_that_did_not_open_has_only_its_failure() -> None:
    data = report_data("g", None, "in: refused")
    assert data == {"graph": "g", "failure": "in: refused", "state": "failed"}


def shown(graph: str, stats: Stats, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(report_tables(graph, stats))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_tables_show_the_nodes_and_the_score() -> None:
    lines = shown("g", Stats("finished", 2.0, NODES), width=80)
    assert lines[0] == "g: 1,234 records in 2.0 s, 617/s"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["in", "source", "1,234", "1,230", "4", "5"] in rows
    assert rows[-7:-1] == [
        ["accuracy", "0.75", "0.5"],
        ["log loss", "0.25", "0.5"],
        ["kappa", "-", "-8.143e-05"],
        ["accuracy, last 1,000", "0.875", "0.625"],
        ["log loss, last 1,000", "0.125", "0.375"],
        ["kappa, last 1,000", "0.7", "0"],
    ]
    assert "m: 1,200 scored" in "".join(lines)
    assert any("model" in line and "no change" in line for line in lines)


def test_it_is_told_how_a_model_learned() -> None:
    report = {"learning": "compiled: own kernels"}
    node = NodeStats("model", received=2, sent=2, rejected=0, skipped=0, report=report)
    stats = Stats("finished", 2.0, {"m": node})
    assert "m: compiled: own kernels" in shown("g", stats)
    assert report_data("g", stats)["nodes"]["m"]["report"] == report


def test_a_target_that_no_record_had_is_told() -> None:
    def lines(samples: int, scored: int) -> list[str]:
        report = {"samples": samples, "score": SCORE | {"scored": scored}}
        node = NodeStats("model", received=2, sent=2, rejected=0, skipped=0, report=report)
        return shown("g", Stats("finished", 2.0, {"m": node}))

    told = "m: nothing scored, as no record had a target; check its name"
    assert told in lines(samples=2, scored=0)
    assert told not in lines(samples=1, scored=0)  # the first one has no baseline to score beside
    assert told not in lines(samples=2, scored=1)


def test_dropped_records_are_attributed_to_their_edge() -> None:
    edges = {
        "in": EdgeStats("drop_oldest", sent=1230, taken=1000, dropped=230),
        "m": EdgeStats("block", sent=7, taken=7),
    }
    nodes = NODES | {"out": NodeStats("sink", 1000, 1000, 0, edges=edges)}
    stats = Stats("finished", 2.0, nodes)
    data = json.loads(json.dumps(report_data("g", stats)))
    assert data["dropped"] == 230
    assert data["nodes"]["out"]["edges"]["in"] == {
        "overflow": "drop_oldest",
        "sent": 1230,
        "taken": 1000,
        "dropped": 230,
        "waiting": 0,
    }
    lines = shown("g", stats)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["in -> out", "drop_oldest", "1,230", "1,000", "230"] in rows
    assert not any("m -> out" in line for line in lines)
    assert not any("dropped" in line for line in shown("g", Stats("finished", 2.0, NODES)))


def test_a_graphs_name_is_not_markup() -> None:
    assert shown("[/odd]", Stats("finished", 0.0, {}))[0] == "[/odd]: 0 records in 0.0 s, 0/s"


def test_the_report_tells_of_checkpoints_and_of_what_is_tried_again() -> None:
    reason = "retrying Produce for 60 s: no connection"
    told = {"records left out": 1200, "retries": 0}
    nodes = NODES | {"out": NodeStats("sink", 1, 1, 0, retrying=reason, report=told)}
    stats = Stats("failed", 2.0, nodes, CheckpointStats(4, 1, "disk full", 0.25, 3.0))
    lines = shown("g", stats)
    assert f"out: {reason}" in lines
    assert "out: 1,200 records left out" in lines
    assert not any("retries" in line for line in lines)
    expected = "checkpoints: 4 taken, 1 failed, streams paused for 0.25 s; the last one: disk full"
    assert expected in lines
    data = json.loads(json.dumps(report_data("g", stats)))
    assert data["checkpoints"]["taken"] == 4
    assert data["nodes"]["out"]["retrying"] == reason
    assert report_data("g", Stats("failed", 2.0, NODES))["checkpoints"] is None


def test_the_report_tells_which_partitions_have_been_read_and_how_far() -> None:
    many = {f"topic=t partition={number}": 1000 + number for number in range(18)}
    nodes = {
        "many": NodeStats("source", 0, 0, 0, positions=many),
        "whole": NodeStats("source", 0, 0, 0, positions={"": 7}),
    }
    lines = shown("g", Stats("finished", 2.0, nodes), width=1000)
    [line] = [line for line in lines if "goes on at" in line]
    assert line.startswith("many goes on at: topic=t partition=0 at 1,000, topic=t partition=1 at ")
    assert line.rstrip().endswith("partition=15 at 1,015, and 2 more partitions")
    assert report_data("g", Stats("finished", 2.0, nodes))["nodes"]["many"]["positions"] == many
