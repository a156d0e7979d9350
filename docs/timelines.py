"""Draws the timelines of docs/pipeline.md: what three stages did with six samples.

python docs/timelines.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from streamflow.pipeline import Pipeline

SCHEMES = {
    "sequential": "own",
    "1f1b": "own",
    "greedy": "own",
    "lockstep": "newest",
}
FOLDER = Path(__file__).parent / "_static"


def timeline(schedule: str) -> str:
    """Return what was recorded of a schedule, one column for each action."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    inputs, targets = torch.zeros(6, 4), torch.zeros(6, 4)
    with (
        Pipeline(
            net,
            loss=F.mse_loss,
            optimizer=torch.optim.SGD,
            stages=["1", "2"],
            schedule=schedule,
            backward=SCHEMES[schedule],
        ) as pipeline,
        pipeline.timeline() as recorded,
    ):
        pipeline.process(inputs, targets)
    return recorded.svg(by_time=False) + "\n"


if __name__ == "__main__":
    for schedule in SCHEMES:
        (FOLDER / f"timeline-{schedule}.svg").write_text(timeline(schedule))
