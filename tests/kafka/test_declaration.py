from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from streamflow import Graph
from streamflow.contracts import Context
from streamflow.errors import ConnectorError, GraphError
from streamflow_connectors.kafka import KafkaSink, KafkaSource


def source(**options: Any) -> KafkaSource:
    return KafkaSource(bootstrap_servers="a:1,b:2", topics=("t",), **options)


LOGIN: dict[str, Any] = {"username": "alice", "password": "hush-hush"}


def test_a_login_becomes_the_drivers_options() -> None:
    declared = source(**LOGIN, sasl_mechanism="SCRAM-SHA-512", security_protocol="SASL_PLAINTEXT")
    assert declared.client_options(Context("in")) == {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "alice",
        "sasl_plain_password": "hush-hush",
    }


def test_encryption_checks_the_brokers_name_and_certificate() -> None:
    tls = source(security_protocol="SSL").client_options(Context("in"))["ssl_context"]
    assert tls.check_hostname


def test_certificates_lie_beside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        declared = source(security_protocol="SSL", ca_file=name)
        with pytest.raises(ConnectorError, match="in: expected certificates and key in PEM format"):
            declared.client_options(Context("in", tmp_path))


def test_no_secret_is_shown() -> None:
    declared = source(**LOGIN, security_protocol="SASL_SSL")
    assert (
        "hush-hush" not in repr(declared) + str(declared.model_dump()) + declared.model_dump_json()
    )
    with pytest.raises(GraphError) as caught:
        source(**LOGIN, security_protocol="SASL_SSL", no_such_option=1)
    assert "hush-hush" not in str(caught.value)
    with pytest.raises(GraphError) as caught:
        KafkaSink(bootstrap_servers="a:1", **LOGIN, security_protocol="SASL_SSL")
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"security_protocol": "SASL_SSL"}, "username and password with SASL_SSL"),
        ({"security_protocol": "SASL_SSL", "username": "alice"}, "username and password"),
        (LOGIN, "SASL_SSL or SASL_PLAINTEXT"),
        ({"ca_file": "ca.pem"}, "SSL or SASL_SSL with ca_file"),
        ({"topics": ()}, "topics"),
        ({"bootstrap_servers": 3}, "bootstrap_servers"),
        (
            {"start": "middle"},
            "start: expected earliest, latest, or a time .*, found middle",
        ),
        ({"start": "2026-01-31T08:00:00"}, "a time with its offset from UTC, found 2026"),
        ({"start": 10**15}, "found 1000000000000000; write a time as .*, or as seconds"),
        ({"start": -1}, "start: .*, found -1"),
        ({"start": True}, "start: .*, found True"),
        ({"formats": {"t": "jsno"}}, "formats.t: expected a format, found .*; did you mean json"),
        ({"formats": {"t": {"csv": {}}}}, "formats.t: expected the names of the columns"),
        ({"formats": {"r": "raw"}}, "formats: expected names of the topics, found r; .*: t"),
        (
            {"topics": (), "pattern": "t+", "formats": {"r": "raw"}},
            r"names that match t\+, found r",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        KafkaSource(**{"bootstrap_servers": "a:1", "topics": ("t",), **options})


def test_a_time_to_start_at_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    for written in ("2026-01-31T08:00:00+02:00", "1767225600", "1767225600.5"):
        path.write_text(
            "name: g\n"
            "sources:\n"
            f"  a: {{type: kafka, bootstrap_servers: h:1, topics: [t], start: {written},\n"
            "      formats: {t: {csv: {fields: [x]}}}}\n"
            "sinks:\n"
            "  out: {type: file, inputs: [a], path: o.jsonl}\n"
        )
        graph = Graph.from_yaml(path)
        path.write_text(graph.to_yaml())
        assert Graph.from_yaml(path) == graph
    declared = graph.sources["a"]
    assert isinstance(declared, KafkaSource)
    assert declared.start == datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert declared.only_scalars is False
    assert source(format={"csv": {"fields": ["x"]}}, formats={"t": "raw"}).only_scalars is False
    assert source(format={"csv": {"fields": ["x"]}}).only_scalars is True


@pytest.mark.parametrize(
    "declared", [source(), KafkaSink(bootstrap_servers="a:1", topic="t")], ids=["source", "sink"]
)
def test_trio_is_refused(declared: KafkaSource | KafkaSink) -> None:
    async def open_node() -> None:
        async with declared.open(Context("node")):
            pass

    with pytest.raises(ConnectorError, match="node: expected the event loop of asyncio"):
        trio.run(open_node)


def test_declaring_imports_no_driver() -> None:
    code = (
        "import sys; from streamflow_connectors import kafka; "
        "from streamflow_connectors.demo import embedded_kafka; "
        "kafka.KafkaSource(bootstrap_servers='a:1', topics=('t',)); "
        "sys.exit(bool({'aiokafka', 'confluent_kafka', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
