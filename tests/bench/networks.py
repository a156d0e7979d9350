"""Networks of the tests, which other processes import by name."""

import os
import signal
import sys
import threading

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Carries a state."""

    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 2)
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.cell(x, self.h)
        return self.h.narrow(1, 0, 1)


class Deadly(nn.Linear):
    """Ends the process that runs it in another thread than the main one."""

    def __init__(self) -> None:
        super().__init__(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            sys.stderr.write("the end is near\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def deadly() -> nn.Module:
    """Return two layers, the second of which ends its process in threads."""
    return nn.Sequential(nn.Linear(3, 2), Deadly())
