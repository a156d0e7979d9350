from __future__ import annotations

import ast
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiokafka  # type: ignore[import-untyped]
import anyio
import pytest

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka import aiokafka_private
from streamflow_connectors.kafka.aiokafka_private import NAMES
from tests.kafka.clients import committed, consume, produce
from tests.kafka.nodes import batch, error_of, reading, receive, source, writing

pytestmark = pytest.mark.asyncio

PACKAGE = Path(aiokafka_private.__file__).parent.parent
PUBLIC = {"aiokafka", "aiokafka.errors"}

FETCH, END_TXN = 1, 26
UNKNOWN_TOPIC, NOT_LEADER, INVALID_PRODUCER_EPOCH = 3, 6, 47


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedKafka]:
    monkeypatch.setattr("streamflow_connectors.kafka.connection.CLOSE_SECONDS", 0.5)
    monkeypatch.setattr("streamflow_connectors.kafka.connection.HURRY_SECONDS", 0.1)
    monkeypatch.setattr("streamflow_connectors.kafka.names.APPEAR_SECONDS", 0.2)
    with EmbeddedKafka() as embedded:
        embedded.create_topic("t")
        yield embedded


async def read(broker: EmbeddedKafka) -> None:
    """Read, store positions and lose the group while something is in flight."""
    address = broker.address
    await produce(address, "t", [b"1", b"2"])
    broker.fail_requests(FETCH, NOT_LEADER)
    async with reading(address, group="g", rebalance_timeout=0.5) as reader:
        values, ends = await receive(reader)
        while len(values) < 2:
            more, ends = await receive(reader)
            values += more
        assert values == [1, 2]
        await reader.commit(ends)
        await reader._revoke()
    assert await committed(address, "g", "t") == 2
    await produce(address, "t", [b"3"])
    async with reading(address, group="g", partitions=(0,)) as reader:
        assert (await receive(reader))[0] == [3]
        broker.set_reachable(False)
        while reader.retrying() is None:
            with anyio.move_on_after(0.1):
                await receive(reader)
        broker.set_reachable(True)
        await produce(address, "t", [b"4"])
        assert (await receive(reader))[0] == [4]


async def write(broker: EmbeddedKafka) -> None:
    """Write to a topic that is named, one that records name and one that is none; stop amid it."""
    address = broker.address
    broker.create_topic("named")
    async with writing(address) as writer:
        await writer.write(batch(1, 2))
        await writer.flush()
    async with writing(address, topic={"field": "to"}) as writer:
        named = batch(3, 4)
        rejected = await writer.write(
            named.with_values([{"to": "named", "x": 3}, {"to": "no topic", "x": 4}])
        )
        assert rejected is not None
        assert rejected.indices == [1]
        await writer.flush()
        broker.fail_topic("absent", UNKNOWN_TOPIC)
        rejected = await writer.write(named.with_values([{"to": "absent"}, {"to": "absent"}]))
        assert rejected is not None
        assert rejected.indices == [0, 1]
    assert [record.value for record in await consume(address, "t", 2)] == [b"1", b"2"]
    assert len(await consume(address, "named", 1)) == 1
    with anyio.CancelScope() as scope:
        async with writing(address) as writer:
            broker.set_reachable(False)
            await writer.write(batch(5))
            await anyio.sleep(0.1)
            scope.cancel()
    broker.set_reachable(True)


async def write_exactly_once(broker: EmbeddedKafka) -> None:
    """Write in a transaction that is committed, and in one that is rolled back."""
    address = broker.address
    broker.create_topic("out")
    sources = {"in": source(address, group="g", partitions=(0,))}
    context = Context("out", sources=sources)
    options = {"topic": "out", "delivery": "exactly_once"}
    async with writing(address, context, **options) as writer:
        await writer.write(batch(1, 2))
        await writer.flush()
    with anyio.CancelScope() as scope:
        async with writing(address, context, **options) as writer:
            await writer.write(batch(1, 2, 3))
            scope.cancel()
    assert [record.value for record in await consume(address, "out", 2)] == [b"1", b"2"]
    async with writing(address, context, **options) as writer:
        broker.fail_requests(END_TXN, INVALID_PRODUCER_EPOCH)
        await writer.write(batch(1, 2, 3))
        with pytest.raises(ConnectorError, match="out: expected"):
            await writer.flush()


async def be_refused(broker: EmbeddedKafka) -> None:
    """Connect where nobody listens."""
    address = broker.address
    broker.set_reachable(False)
    error = await error_of(_open(address))
    assert "within 1 s" in error
    broker.set_reachable(True)
    async with reading(address):
        pass


async def _open(address: str) -> None:
    async with reading(address, connect_timeout=1.0):
        pass


USES: dict[str, Callable[[EmbeddedKafka], Awaitable[None]]] = {
    "client": write,
    "request": read,
    "answer": read,
    "consumer": read,
    "producer": write,
    "batch": write,
    "transaction": write_exactly_once,
    "partitioner": write,
    "connect": be_refused,
}


@pytest.mark.parametrize("use", dict.fromkeys(USES.values()))
async def test_the_driver_has_all_that_is_taken_from_it(
    broker: EmbeddedKafka,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[EmbeddedKafka], Awaitable[None]],
) -> None:
    aiokafka_private._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "streamflow.kafka"), anyio.fail_after(60):
        await use(broker)
    assert "has no" not in caplog.text


@pytest.mark.parametrize("key", NAMES)
async def test_what_the_driver_lacks_is_told_and_all_else_works(
    broker: EmbeddedKafka,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    name = NAMES[key]
    monkeypatch.setitem(NAMES, key, name._replace(path=f"{name.path}_of_another_version"))
    aiokafka_private._warn.cache_clear()
    use = USES[key.partition(".")[0]]
    with caplog.at_level(logging.WARNING, "streamflow.kafka"), anyio.fail_after(60):
        if name.without is None:
            with pytest.raises(ConnectorError, match=r"install aiokafka==") as caught:
                await use(broker)
            assert f"{name.path}_of_another_version, {name.purpose}" in str(caught.value)
            assert aiokafka.__version__ in str(caught.value)
        else:
            await use(broker)
            told = [record for record in caplog.messages if "_of_another_version" in record]
            assert len(told) == 1
            assert name.without in told[0]


def foreign(path: Path) -> Iterator[str]:
    """Yield what a file takes of others although it begins with an underscore."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            owner = ast.unparse(node.value)
            if is_private and owner not in {"self", "cls", "super()"} and node.attr != "_replace":
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))


async def test_no_other_file_takes_private_parts_of_a_driver() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 50
    assert {str(path): [*foreign(path)] for path in paths if [*foreign(path)]} == {}


async def test_other_files_import_what_the_driver_documents() -> None:
    for path in (PACKAGE / "kafka").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found = {name for name in names if name.partition(".")[0] == "aiokafka"}
            assert found <= PUBLIC, path
