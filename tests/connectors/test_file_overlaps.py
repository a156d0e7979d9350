import pytest

from streamflow import Graph, GraphError
from streamflow_connectors.files import FileSink, FileSource


def overlapping(source: str, *sinks: str) -> Graph:
    names = ["first", "second"][: len(sinks)]
    return Graph(
        name="overlapping",
        sources={"readings": FileSource(path=source, format="csv")},
        sinks={
            name: FileSink(inputs=["readings"], path=path, format="csv")
            for name, path in zip(names, sinks, strict=True)
        },
    )


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        ("a.csv", "a.csv"),
        ("./a.csv", "b/../a.csv"),
        ("logs/*.csv", "logs/out.csv"),
        ("logs/[ab]?.csv", "./logs/a1.csv"),
        ("[a].csv", "[a].csv"),
    ],
)
def test_no_sink_writes_over_what_a_source_reads(source: str, sink: str) -> None:
    with pytest.raises(GraphError) as caught:
        overlapping(source, sink)
    assert str(caught.value) == (
        f"sinks.first.path: expected a file that nothing reads, found {sink}, which the source "
        f"readings reads; write to another one"
    )


def test_a_sink_is_told_of_another_one_for_the_same_file() -> None:
    with pytest.raises(GraphError) as caught:
        overlapping("a.csv", "out.csv", "./out.csv")
    assert str(caught.value) == (
        "sinks.second.path: expected a file of its own, found ./out.csv, which the sink first "
        "writes; let one sink receive from all its inputs"
    )


@pytest.mark.parametrize(
    ("source", "sinks"),
    [
        ("a.csv", ("b.csv", "c.csv")),
        ("-", ("-", "-")),
        ("logs/*.csv", ("logs/out/a.csv", "out.csv")),
        ("logs/*.csv", ("logs/out.jsonl",)),
    ],
)
def test_files_of_their_own_are_fine(source: str, sinks: tuple[str, ...]) -> None:
    assert len(overlapping(source, *sinks).sinks) == len(sinks)
