"""The conformance suite: what any `EventLog` must do before it is called supported.

The tests of this folder know the protocol (`events/log.py`) and a `Backend`, and nothing of how a log is made. Another
kind of log passes when it is added to `backends.BACKENDS` and all of them pass; `test_faults.py` shows that a log which
breaks a point does not. The points:

 1. Positions run over the log and revisions over each stream, both from 1 and without gaps, whoever writes.
 2. An append is stored whole, consecutively and with its envelope, or not at all.
 3. What is refused (a bad name, event, size, revision, key, fence or cause) is a typed error, and changes nothing: not
    the records, the head, the key's use or the fence.
 4. An expected revision holds exactly, and one of many callers wins it.
 5. A repeated key gives the first receipt and stores nothing, also after reopening; with other events it is refused.
 6. A fencing token older than one seen on the stream is refused.
 7. Time never decreases in the record, whatever the clock does.
 8. A decider sees exactly the state at the head; what it raises is raised with nothing stored.
 9. Every range is read in order, with no record missing or twice, while others append; streams are apart.
10. An event of a later version keeps its bytes; an old one is read as the present one, and its bytes stay.
11. Callers on threads, on event loops and in other processes get their own answers; a cancelled one disturbs nobody.
12. Listeners hear of each commit, and of nothing else, until they leave.
13. A closed log refuses everything; one opened again is the same log.
14. A process that is killed loses nothing it acknowledged, and holds up nobody.
15. Changed bytes are found by whoever reads them.
16. What a second copy has whole comes back.

13 needs `REOPENED`, 14 `PROCESSES`, 15 `DAMAGE`, 16 `SECOND_COPY`, and 7 `CLOCK`; all else is asked of every log.
"""

from __future__ import annotations

import contextlib
import enum
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar, final

import pytest

from sandkeep.events import EventLog, Follower, Record, SandkeepError

from ..support import Replica, done

Log = EventLog[list[Record]]
Point = Callable[["Subject"], None]
P = TypeVar("P", bound=Point)


class Capability(enum.Enum):
    """What not every log can do."""

    CLOCK = "it is given its clock"
    REOPENED = "it is there again when it is opened again"
    PROCESSES = "other processes have it open at the same time, and may be killed"
    DAMAGE = "it finds bytes that were changed below it"
    SECOND_COPY = "it is rebuilt when it is lost"


class Backend(Protocol):
    """A kind of log. What it cannot do, see `capabilities`, is never asked of it."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do beside what every log must."""

    def open(self, folder: Path, follower: Follower[list[Record]], clock: Callable[[], int]) -> Log:
        """Open the log that lies in `folder`, or make it."""

    def check(self, folder: Path) -> None:
        """Fail if the closed log in `folder` is not whole by the backend's own standards."""

    def elsewhere(self, folder: Path, verb: str, argument: object) -> contextlib.AbstractContextManager[Worker]:
        """A process that does as `worker.py` has it, to this log. `PROCESSES`"""

    def damage(self, folder: Path, needle: bytes) -> None:
        """Change a bit of `needle` where the closed log has stored it. `DAMAGE`"""

    def lose(self, folder: Path) -> None:
        """Destroy the closed log, but not its second copy, and rebuild it. `SECOND_COPY`"""


Worker = subprocess.Popen[str]

_needs: dict[object, frozenset[Capability]] = {}


def needs(*capabilities: Capability) -> Callable[[P], P]:
    """Run the decorated test only for backends that have these."""

    def note(point: P) -> P:
        _needs[point] = frozenset(capabilities)
        return point

    return note


def fits(point: object, backend: Backend) -> bool:
    """Whether `backend` has what the test `point` needs."""
    return _needs.get(point, frozenset()) <= backend.capabilities


@final
class Subject:
    """One log under test. Its deciders see the list of all records; its clock is `now`."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.now = 1000
        self.replica = Replica()
        self._log: Log | None = None

    @property
    def log(self) -> Log:
        """The log, opened if it is not."""
        if self._log is None:
            self.replica = Replica()
            self._log = self.backend.open(self.folder, self.replica, lambda: self.now)
        return self._log

    def close(self) -> None:
        """Close it; `log` opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def elsewhere(self, verb: str, argument: object) -> contextlib.AbstractContextManager[Worker]:
        """Another process that uses this log."""
        return self.backend.elsewhere(self.folder, verb, argument)

    @contextlib.contextmanager
    def refused(self, error: type[SandkeepError], match: str | None = None) -> Iterator[None]:
        """The block raises `error`, and leaves no trace of itself."""
        before = self.log.head(), list(self.log.read())
        with pytest.raises(error, match=match) as caught:
            yield
        assert type(caught.value) is error
        assert (self.log.head(), list(self.log.read())) == before

    def whole(self, events: int) -> None:
        """It has this many events, positions and revisions are dense, times ascend, and the backend agrees."""
        records = list(self.log.read())
        assert [r.position for r in records] == list(range(1, events + 1))
        for stream in {r.stream for r in records}:
            mine = [r for r in records if r.stream == stream]
            assert [r.revision for r in mine] == list(range(1, len(mine) + 1))
            assert list(self.log.read_stream(stream)) == mine
        times = [r.time_ns for r in records]
        assert times == sorted(times)
        head = self.log.head()
        assert (head.position, head.time_ns) == (events, max(times, default=0))
        self.close()
        self.backend.check(self.folder)


def append(log: Log, *texts: str, stream: str = "task/a") -> int:
    """Append an event for each text, and return the last position."""
    return log.append(stream, done(*texts), actor="me").last
