"""A web application that learns: post a reading, and get its prediction back at once.

    uvicorn web_application:app
    curl -X POST localhost:8000/readings -H 'content-type: application/json' -d '{"x": 2, "y": 7}'

A reading without ``y`` is predicted and not learned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from streamflow import Graph, Model
from streamflow.runtime.run import Run
from streamflow_connectors.memory import MemorySink, MemorySource

graph = Graph(
    name="web",
    sources={"readings": MemorySource()},
    models={
        "line": Model(
            inputs=["readings"],
            network=[{"Linear": [1, 1]}],
            features=["x"],
            target="y",
            optimizer={"SGD": {"lr": 0.01}},
            carry=["request"],
        )
    },
    sinks={"predictions": MemorySink(inputs=["line"])},
)


class Reading(BaseModel):
    """What is posted."""

    x: float
    y: float | None = None


class Predictor:
    """Brings every prediction back to the request that waits for it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def predict(self, reading: Reading) -> dict[str, Any]:
        """Push a reading, and wait for its prediction."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            value = {**reading.model_dump(exclude_none=True), "request": number}
            await self._run.send("readings", value)
            return await self._waiting[number]
        finally:
            del self._waiting[number]

    async def deliver(self) -> None:
        """Hand out predictions as they come."""
        async for record in self._run.records("predictions"):
            request = record.value["request"]
            if request in self._waiting:
                self._waiting[request].set_result(record.value)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the graph open for as long as the application runs."""
    async with graph.open() as run:
        app.state.predictor = Predictor(run)
        delivery = asyncio.create_task(app.state.predictor.deliver())
        yield
        delivery.cancel()
        with suppress(asyncio.CancelledError):
            await delivery


app = FastAPI(lifespan=lifespan)


@app.post("/readings")
async def predict(reading: Reading) -> dict[str, Any]:
    """Predict a reading, then learn from it."""
    predictor: Predictor = app.state.predictor
    value = await predictor.predict(reading)
    return {"prediction": value["prediction"], "step": value["step"]}
