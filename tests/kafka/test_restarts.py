"""A real broker that is killed, comes back, or stays away, while jobs run."""

from __future__ import annotations

import os

import anyio
import pytest
from anyio import to_thread

from tests.kafka.jobs import Job, running
from tests.kafka.server import Server
from tests.kafka.streams import stream_of
from tests.kafka.test_exactly_once import read

pytestmark = pytest.mark.kafka

OUTAGE = float(os.environ.get("STREAMFLOW_TEST_OUTAGE", "0"))
"""Seconds that the broker is gone before it comes back."""


async def restart(server: Server) -> None:
    await to_thread.run_sync(server.stop)
    await anyio.sleep(OUTAGE)
    await to_thread.run_sync(server.start)


@pytest.mark.asyncio
@pytest.mark.timeout(400)
async def test_members_live_on_when_the_broker_restarts(server: Server) -> None:
    jobs: dict[str, Job] = {}
    async with stream_of(server.address) as stream:
        places = stream.address, stream.topic_in, stream.topic_out
        with (
            running("member", *places, name="a") as jobs["a"],
            running("member", *places, name="b") as jobs["b"],
        ):
            await stream.wait_for("a", "b", jobs=jobs)
            await stream.send(300)
            await restart(server)
            await stream.wait_for("a", "b", jobs=jobs)
            await stream.wait_for_all(jobs)
            await jobs["a"].stop()
            await jobs["b"].stop()


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_a_job_ends_with_a_clear_error_when_the_broker_stays_away(server: Server) -> None:
    async with stream_of(server.address) as stream:
        places = stream.address, stream.topic_in, stream.topic_out
        with running("member", *places, name="a", retry_for=2.0) as job:
            await stream.wait_for("a", jobs={"a": job})
            await to_thread.run_sync(server.stop)
            assert await job.wait() == 1
            assert "to be back within 2 s, found retrying" in job.log


@pytest.mark.asyncio
@pytest.mark.timeout(400)
async def test_each_output_is_seen_once_and_in_order_though_the_broker_is_killed(
    server: Server,
) -> None:
    async with stream_of(server.address) as stream:
        topic_in, topic_out = stream.topic_in, stream.topic_out
        with running("exactly_once", server.address, topic_in, topic_out, stop_at_end=False) as job:
            values: list[int] = []
            for _ in range(2):
                await stream.send(500)
                count = len(values)
                while len(values) == count:  # so that it is in the middle of them
                    assert not job.has_ended, job.log
                    values = await read(server.address, topic_out)
                await restart(server)
            while len(values) < stream.sent[0]:
                assert not job.has_ended, job.log
                values = await read(server.address, topic_out)
            await job.stop()
        assert values == [2 * number for number in range(stream.sent[0])]
