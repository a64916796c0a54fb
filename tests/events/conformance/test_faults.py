"""The suite is worth something: a log that breaks a point fails the test that is there for it.

Each fault is a whole log with one thing wrong, and names the tests that must not pass with it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, final

import msgspec
import pytest

from sandkeep.events import (
    BadInput,
    Event,
    Follower,
    KeyReused,
    LogDamaged,
    Receipt,
    Record,
    RevisionConflict,
    SandkeepError,
    StaleFence,
)

from . import test_appending as appending
from . import test_deciding as deciding
from . import test_reading as reading
from . import test_sharing as sharing
from .backends import Lmdb
from .subject import Capability, Log, Point, Subject, Worker, fits

replace = msgspec.structs.replace


class Whole:
    """A log that passes everything on to one that is whole; a fault overrides some of it."""

    def __init__(self, whole: Log) -> None:
        self.whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        return self.whole.append(stream, events, **more)

    def decide(self, stream: str, decider: Callable[[list[Record]], Sequence[Event]], **more: Any) -> Receipt:
        return self.whole.decide(stream, decider, **more)

    async def append_async(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        return await self.whole.append_async(stream, events, **more)

    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        return self.whole.read(after, until=until)

    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        return self.whole.read_stream(stream, after)


class GapInPositions(Whole):
    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        for record in super().read(after, until=until):
            yield replace(record, position=record.position + (record.position > 2))


class RepeatStoredTwice(Whole):
    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        return super().append(stream, events, **more | {"key": None})


class KeyForAnything(Whole):
    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        try:
            return super().append(stream, events, **more)
        except KeyReused:
            return self.whole.decide(stream, lambda view: [], **more)


class RefusalStored(Whole):
    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        try:
            return super().append(stream, events, **more)
        except RevisionConflict:
            super().append(stream, events, **more | {"expected": None})
            raise


class RefusalTakesTheKey(Whole):
    """It looks as if nothing had happened until the key is used again."""

    def __init__(self, whole: Log) -> None:
        super().__init__(whole)
        self._taken: dict[tuple[str, str], BadInput] = {}

    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        name = (stream, more.get("key") or "")
        if name in self._taken:
            raise self._taken[name]
        try:
            return super().append(stream, events, **more)
        except RevisionConflict as error:
            self._taken[name] = BadInput(str(error))
            raise


class RefusalRaisesTheFence(Whole):
    raised = 0

    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        fence = more.get("fence") or self.raised
        if fence < self.raised:
            raise StaleFence(f"{fence} is stale")
        try:
            return super().append(stream, events, **more)
        except BadInput:
            self.raised = fence
            raise


class FenceIgnored(Whole):
    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        return super().append(stream, events, **more | {"fence": None})


class ConflictIgnored(Whole):
    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        return super().append(stream, events, **more | {"expected": None})


class TimeGoesDown(Whole):
    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        for record in super().read(after, until=until):
            yield replace(record, time_ns=record.time_ns - record.position)


class HalfAnAppend(Whole):
    """Events are stored one by one, up to the one that is refused."""

    def append(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        receipts = [super(HalfAnAppend, self).append(stream, [event], **more) for event in events]
        return replace(receipts[-1], first=receipts[0].first)


class StaleState(Whole):
    def decide(self, stream: str, decider: Callable[[list[Record]], Sequence[Event]], **more: Any) -> Receipt:
        return super().decide(stream, lambda view: decider(view[:-1]), **more)


class DecidesTwice(Whole):
    """It asks before it looks whether the key was used."""

    def decide(self, stream: str, decider: Callable[[list[Record]], Sequence[Event]], **more: Any) -> Receipt:
        decider(list(self.whole.read()))
        return super().decide(stream, decider, **more)


class StreamsRunTogether(Whole):
    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        mine = (record for record in self.whole.read() if record.stream.startswith(stream))
        return (record for revision, record in enumerate(mine, 1) if revision > after)


class EndOfRangeForgotten(Whole):
    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        return super().read(after)


class BytesWrittenAnew(Whole):
    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        for record in super().read(after, until=until):
            yield replace(record, data=msgspec.Raw(msgspec.msgpack.encode(msgspec.msgpack.decode(record.data))))

    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        return (record for record in self.read() if record.stream == stream and record.revision > after)


class AnswersMixedUp(Whole):
    """Callers on a loop get the answer to whoever was last."""

    async def append_async(self, stream: str, events: Sequence[Event], **more: Any) -> Receipt:
        self.last = await super().append_async(stream, events, **more)
        return replace(self.last, revision=self.whole.head().position)


class ListenersForgotten(Whole):
    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class DamagePassedOver(Whole):
    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        with contextlib.suppress(LogDamaged):
            yield from super().read(after, until=until)


class NeverClosed(Whole):
    def close(self) -> None:
        """Stay open."""


@final
class Faulty:
    """The backend of a fault. One that `forgets` makes another log each time it opens one."""

    def __init__(self, fault: type[Whole], *, forgets: bool = False) -> None:
        self._fault = fault
        self._forgets = forgets
        self._sound = Lmdb(journaled=True)
        self.opened: list[Log] = []
        self.capabilities = self._sound.capabilities - {Capability.PROCESSES}

    def open(self, folder: Path, follower: Follower[list[Record]], clock: Callable[[], int]) -> Log:
        place = folder / f"{len(self.opened)}" if self._forgets else folder
        self.opened.append(self._sound.open(place, follower, clock))
        return cast(Log, self._fault(self.opened[-1]))

    def check(self, folder: Path) -> None:
        """Leave all judgement to the tests."""

    def elsewhere(self, folder: Path, verb: str, argument: object) -> contextlib.AbstractContextManager[Worker]:
        return self._sound.elsewhere(folder, verb, argument)

    def damage(self, folder: Path, needle: bytes) -> None:
        self._sound.damage(folder, needle)

    def lose(self, folder: Path) -> None:
        if self._forgets:
            shutil.rmtree(folder)
        else:
            self._sound.lose(folder)


FAULTS: dict[type[Whole], Point] = {
    GapInPositions: appending.test_positions_run_over_the_log_and_revisions_over_each_stream,
    RepeatStoredTwice: appending.test_a_repeated_key_returns_the_first_receipt_and_stores_nothing,
    KeyForAnything: appending.test_a_key_used_for_other_events_is_refused,
    RefusalStored: appending.test_an_expected_revision_must_hold,
    RefusalTakesTheKey: appending.test_an_expected_revision_must_hold,
    RefusalRaisesTheFence: appending.test_a_refused_append_does_not_raise_the_fence,
    FenceIgnored: appending.test_a_token_older_than_one_seen_is_stale,
    ConflictIgnored: sharing.test_one_of_many_threads_wins_an_expected_revision,
    TimeGoesDown: appending.test_time_never_decreases_while_the_clock_does,
    HalfAnAppend: appending.test_an_event_that_could_not_be_read_back_is_refused_with_all_beside_it,
    StaleState: deciding.test_a_decider_sees_everything_up_to_the_head,
    DecidesTwice: deciding.test_a_repeated_key_does_not_run_the_decider,
    StreamsRunTogether: reading.test_streams_whose_names_begin_alike_are_apart,
    EndOfRangeForgotten: reading.test_any_range_is_read_across_appends,
    BytesWrittenAnew: appending.test_an_event_of_a_later_version_keeps_its_bytes,
    AnswersMixedUp: sharing.test_asyncio_callers_get_their_own_answers,
    ListenersForgotten: reading.test_listeners_are_called_after_each_commit_until_they_leave,
    DamagePassedOver: reading.test_one_changed_bit_is_found_and_what_is_whole_is_still_read,
    NeverClosed: sharing.test_a_closed_log_refuses_everything,
}
FORGOTTEN = [
    sharing.test_what_was_appended_is_there_after_reopening,
    sharing.test_a_log_that_is_lost_comes_back_from_its_second_copy,
]


def failure(point: Point, backend: Faulty, folder: Path) -> BaseException | None:
    """What the test `point` has against a log."""
    assert fits(point, backend)
    folder.mkdir()
    subject = Subject(backend, folder)
    try:
        point(subject)
    except (AssertionError, pytest.fail.Exception, SandkeepError) as error:
        return error
    finally:
        subject.close()
        for log in backend.opened:
            log.close()
    return None


@pytest.mark.parametrize(("fault", "point"), FAULTS.items(), ids=lambda each: each.__name__)
def test_each_fault_is_caught_and_the_log_without_it_passes(fault: type[Whole], point: Point, tmp_path: Path) -> None:
    assert failure(point, Faulty(Whole), tmp_path / "whole") is None
    caught = failure(point, Faulty(fault), tmp_path / "faulty")
    assert caught is not None


@pytest.mark.parametrize("point", FORGOTTEN, ids=lambda point: point.__name__)
def test_a_log_that_forgets_is_caught(point: Point, tmp_path: Path) -> None:
    assert failure(point, Faulty(Whole), tmp_path / "whole") is None
    caught = failure(point, Faulty(Whole, forgets=True), tmp_path / "faulty")
    assert isinstance(caught, AssertionError), caught
