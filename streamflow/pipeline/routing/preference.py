"""Which of two ways to run stages is faster, found out while they run."""

import time
from statistics import median

# The other way must be clearly faster, since it takes cores from whatever else runs.
MARGIN = 0.1
# Calls with fewer samples of each stage say nothing, and leave nothing to run at the same time.
_FEWEST = 4
_CALLS = 5
_SECONDS = 0.1
# A machine may become busy, or idle.
_RENEWED_SECONDS = 60.0


class Preference:
    """Tries stages in one thread and in several, in turn, and then keeps to the faster way.

    Attributes:
        threads: Whether several threads are the faster way, as far as is known.

    Args:
        num_stages: How many stages there are.
    """

    def __init__(self, num_stages: int) -> None:
        self.threads = False
        self._fewest = _FEWEST * num_stages
        self._is_trying, self._since = True, time.monotonic()
        self._times: dict[bool, list[float]] = {False: [], True: []}
        self._spent = {False: 0.0, True: 0.0}

    def __repr__(self) -> str:
        state = "trying" if self._is_trying else "settled"
        return f"<Preference: {state}, {'threads' if self.threads else 'inline'}>"

    def choose(self, count: int) -> bool:
        """Say whether a call of so many samples runs in several threads."""
        if count < self._fewest:
            return False
        if self._is_trying:
            return len(self._times[True]) < len(self._times[False])
        return self.threads

    def note(self, count: int, seconds: float, *, threads: bool) -> None:
        """Take note of what a call took."""
        if count < self._fewest:
            return
        if not self._is_trying:
            if time.monotonic() - self._since > _RENEWED_SECONDS:
                self._begin()
            return
        self._times[threads].append(seconds / count)
        self._spent[threads] += seconds
        enough = all(len(times) >= _CALLS for times in self._times.values())
        if enough and min(self._spent.values()) >= _SECONDS:
            alone, together = median(self._times[False]), median(self._times[True])
            self.threads = alone > together * (1 + MARGIN)
            self._is_trying, self._since = False, time.monotonic()

    def _begin(self) -> None:
        self._is_trying = True
        self._times = {False: [], True: []}
        self._spent = {False: 0.0, True: 0.0}
