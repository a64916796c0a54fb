"""When a process that crashes is started again: at once, then later and later, then only to try.

The pattern is the circuit breaker of Nygard, *Release It!*: after so many crashes within a time the circuit is open,
and whoever asks is told so instead of kept waiting. A try that lives closes it; if that one crashes too, soon, the
circuit is open again. Pure: it is told the time.
"""

from __future__ import annotations

from collections import deque
from typing import final

FIRST_SECONDS, LONGEST_SECONDS = 0.1, 5.0


@final
class Breaker:
    """Counts crashes: more than `most` within `window` seconds open the circuit, and it is tried every `rest`."""

    def __init__(self, most: int = 5, window: float = 60.0, rest: float = 15.0) -> None:
        self._most, self._window, self._rest = most, window, rest
        self._crashes: deque[float] = deque()
        self.open = False
        """Whether nothing is to be given to the process before it has shown that it lives."""

    def crashed(self, now: float) -> float:
        """The process has crashed; in how many seconds it is to be started again."""
        self._crashes.append(now)
        while self._crashes[0] < now - self._window:
            self._crashes.popleft()
        before = len(self._crashes) - 1
        if before >= self._most:
            self.open = True
            self._crashes.popleft()  # what is remembered is bounded
            return self._rest
        return 0.0 if before == 0 else min(FIRST_SECONDS * 2.0 ** (before - 1), LONGEST_SECONDS)

    def lives(self) -> None:
        """The process does what it is asked to."""
        self.open = False
