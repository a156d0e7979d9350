import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from httpx import ASGITransport, AsyncClient

from examples.web_application import app, lifespan

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_electricity_predicts_every_reading_in_order(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "electricity", tmp_path, dirs_exist_ok=True)
    for command in (
        ["make_readings.py", "elec.csv"],
        ["-m", "streamflow", "run", "graph.yaml"],
    ):
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"]["line"] for line in lines] == [*range(1, 5001)]


def test_embedding_prints_predictions_that_get_closer(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "embedding.py"))["main"]
    anyio.run(main)
    pairs = [
        [float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()
    ]
    errors = [abs(prediction - target) for prediction, target in pairs]
    assert len(errors) == 500
    assert sum(errors[-50:]) < 0.1 * sum(errors[:50])


@pytest.mark.asyncio
async def test_web_application_learns_from_what_is_posted() -> None:
    async with (
        lifespan(app),
        AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        for number in range(300):
            x = number % 10
            response = await client.post("/readings", json={"x": x, "y": 3 * x + 1})
            assert response.json()["step"] == number
        answer = (await client.post("/readings", json={"x": 2})).json()
    assert answer["prediction"] == pytest.approx(7, abs=1.5)
    assert answer["step"] == 300
