"""Random numbers of one stage: its own state, lent to the device's generator for one call."""

import random
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Torch has one default generator per device, and dropout takes no other: stages that run in
# different threads borrow it one after the other.
_BORROWING = threading.Lock()


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator that random operations on ``device`` draw from."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


class Randomness:
    """The random state of one stage.

    Attributes:
        state: State that the next forward starts from.
        is_used: Whether the stage draws random numbers at all; None until it has been seen to run.
    """

    def __init__(self, seed: int, stage_index: int, device: torch.device) -> None:
        # Neighbouring seeds and stages must not share a sequence, as seed + stage would.
        own_seed = random.Random(f"{seed}/{stage_index}").getrandbits(63)
        self._device = device
        self.state: Tensor = torch.Generator(device).manual_seed(own_seed).get_state()
        self.is_used: bool | None = None

    def draw(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` with this stage's random numbers and move on past them."""
        result, after = self._lend(function, self.state)
        self._see(after)
        self.state = after
        return result

    def replay(self, function: Callable[[], Any], state: Tensor) -> Any:
        """Call ``function`` with the random numbers that follow ``state``."""
        return self._lend(function, state)[0]

    def probe(self, function: Callable[[], Any]) -> Any:
        """Call ``function``, forget what it drew, and remember whether it drew anything."""
        result, after = self._lend(function, self.state)
        self._see(after)
        return result

    def _see(self, after: Tensor) -> None:
        self.is_used = self.is_used or not torch.equal(after, self.state)

    def _lend(self, function: Callable[[], Any], state: Tensor) -> tuple[Any, Tensor]:
        generator = default_generator(self._device)
        with _BORROWING:
            lender = generator.get_state()
            generator.set_state(state)
            try:
                result = function()
                return result, generator.get_state()
            finally:
                generator.set_state(lender)
