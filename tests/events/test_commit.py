"""Callers that arrive together share a commit, and each of them gets what it would have got alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import lmdb
import pytest

from sandkeep.events import Event, KeyReused, LmdbLog, LogUnavailable, Record, RevisionConflict, UnknownEvent
from sandkeep.events import verify as verification
from sandkeep.events.log import MAX_EVENTS

from .support import Replica, done, words

Log = LmdbLog[list[Record]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with contextlib.closing(Log(tmp_path / "log", follower=Replica())) as opened:
        yield opened


class Held:
    """A first decision that does not end until it is told to, so that others gather behind it."""

    def __init__(self, log: Log) -> None:
        self._entered, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: log.decide("task/first", self._decide, actor="me"))
        self._thread.start()
        assert self._entered.wait(10)

    def _decide(self, view: object) -> list[Event]:
        self._entered.set()
        assert self._go_on.wait(10)
        return done("first")

    def release(self) -> None:
        self._go_on.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def gather(log: Log, calls: Sequence[Callable[[], object]]) -> list[object]:
    """Make the calls from a thread each, so that all but the first wait for the same commit; what they gave."""
    held = Held(log)
    results: list[object] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except (RevisionConflict, KeyReused, LogUnavailable, ZeroDivisionError) as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for waiting, thread in enumerate(threads, start=1):
        thread.start()
        wait_until(partial(has_queued, log, waiting))
    held.release()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def has_queued(log: Log, requests: int) -> bool:
    return len(log._committer._queue) == requests


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def frames(log: Log) -> list[int]:
    """How many events each frame has."""
    return [frame.count for frame in log._page(0, None)]


def test_what_waits_is_one_frame_in_order_of_arrival(log: Log) -> None:
    gather(log, [partial(log.append, "task/a", done(f"{number}"), actor="me") for number in range(5)])
    assert words(log.read()) == ["first", "0", "1", "2", "3", "4"]
    assert frames(log) == [6]


def test_a_refused_request_fails_alone_and_leaves_nothing(log: Log) -> None:
    def divide(view: object) -> list[Event]:
        return done(str(1 // 0))

    results = gather(
        log,
        [
            lambda: log.append("task/a", done("1"), actor="me", expected=0).revision,
            lambda: log.append("task/a", done("2"), actor="me", expected=0, key="k"),
            lambda: log.decide("task/a", divide, actor="me", key="k"),
            lambda: log.append("task/a", done("3"), actor="me", expected=1, key="k").revision,
            lambda: log.append("task/a", done("4"), actor="me", key="k"),
            lambda: log.append("task/a", done("3"), actor="me", key="k").repeated,
        ],
    )
    assert results[0] == 1
    assert isinstance(results[1], RevisionConflict)
    assert isinstance(results[2], ZeroDivisionError)
    assert results[3] == 2
    assert isinstance(results[4], KeyReused)
    assert results[5] is True
    assert (words(log.read()), frames(log)) == (["first", "1", "3"], [3])


def test_a_decider_sees_those_before_it_in_its_group(log: Log) -> None:
    def count(view: list[Record]) -> list[Event]:
        return done(f"saw {len(view)}")

    gather(
        log,
        [
            lambda: log.append("task/a", done("1"), actor="me"),
            lambda: log.decide("task/a", count, actor="me"),
            lambda: log.decide("task/b", count, actor="me"),
        ],
    )
    assert words(log.read()) == ["first", "1", "saw 2", "saw 3"]
    assert frames(log) == [4]


def test_a_full_frame_leaves_the_rest_for_the_next(log: Log) -> None:
    most = [UnknownEvent("T", 1, b"\xc0")] * (MAX_EVENTS - 1)
    gather(
        log,
        [
            lambda: log.append("task/a", most, actor="me"),
            lambda: log.append("task/b", done("1"), actor="me"),
            lambda: log.append("task/c", done("2"), actor="me"),
            lambda: log.decide("task/d", lambda view: done("3"), actor="me"),
        ],
    )
    assert frames(log) == [MAX_EVENTS, 3]


def test_what_waits_when_the_log_is_closed_is_done_or_refused(log: Log, tmp_path: Path) -> None:
    held = Held(log)
    closing = threading.Thread(target=log.close)
    closing.start()
    acknowledged: list[int] = []
    refused: list[LogUnavailable] = []

    def append() -> None:
        try:
            while True:
                acknowledged.append(log.append("task/a", done("x"), actor="me").last)
        except LogUnavailable as error:
            refused.append(error)

    appending = threading.Thread(target=append)
    appending.start()
    held.release()
    for thread in (closing, appending):
        thread.join(10)
        assert not thread.is_alive()
    assert len(refused) == 1
    report = verification.verify(tmp_path / "log")
    assert (report.ok, report.head) == (True, 1 + len(acknowledged))


def test_asyncio_callers_share_commits(log: Log) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(log.append_async("task/a", done("x"), actor="me") for _ in range(32)))

    asyncio.run(all_of_them())
    assert log.head().position == 32
    assert max(frames(log)) > 8


def test_cancelling_an_asyncio_caller_disturbs_nobody(log: Log) -> None:
    async def run() -> int:
        held = await asyncio.to_thread(Held, log)
        cancelled = asyncio.ensure_future(log.append_async("task/a", done("cancelled"), actor="me"))
        kept = asyncio.ensure_future(log.append_async("task/a", done("kept"), actor="me"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.to_thread(held.release)
        return (await kept).last

    assert asyncio.run(run()) == 3
    assert words(log.read()) == ["first", "cancelled", "kept"]


@pytest.mark.parametrize("database", ["frames", "streams", "keys", "fences"])
def test_a_request_survives_a_map_that_fills_up_at_any_of_its_writes(
    log: Log, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("task/a", done("1"), actor="me")
    layout = log._layout
    grown: list[int] = []

    class FullCursor:
        def __init__(self, cursor: lmdb.Cursor[bytes]) -> None:
            self._cursor = cursor

        def putmulti(self, items: list[tuple[bytes, bytes]]) -> tuple[int, int]:
            raise lmdb.MapFullError("full")

        def __getattr__(self, name: str) -> object:
            return getattr(self._cursor, name)

    class Full:
        """A transaction whose first write to one database finds no room."""

        def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
            self._txn = txn

        def put(self, key: bytes, value: bytes, *, db: object, append: bool = False) -> bool:
            if db is getattr(layout, database) and not grown:
                raise lmdb.MapFullError("full")
            return self._txn.put(key, value, db=db, append=append)  # type: ignore[arg-type]

        def cursor(self, db: lmdb._Database) -> lmdb.Cursor[bytes] | FullCursor:
            cursor = self._txn.cursor(db)
            return FullCursor(cursor) if db is getattr(layout, database) and not grown else cursor

        def __getattr__(self, name: str) -> object:
            return getattr(self._txn, name)

    writing = layout.writing

    @contextlib.contextmanager
    def full() -> Iterator[Full]:
        with writing() as txn:
            yield Full(txn)

    monkeypatch.setattr(layout, "writing", full)
    monkeypatch.setattr(layout, "grow", lambda: grown.append(1))
    receipt = log.append("task/a", done("2"), actor="me", key="k", fence=1)
    assert (receipt.last, receipt.revision, grown) == (2, 2, [1])
    assert words(log.read()) == ["1", "2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_caller_leaves_the_lead_to_others_and_its_request_undone(
    log: Log, error: type[BaseException]
) -> None:
    def interrupted(view: object) -> list[Event]:
        raise error

    with pytest.raises(error):
        log.decide("task/a", interrupted, actor="me")
    appending = threading.Thread(target=log.append, args=("task/a", done("1")), kwargs={"actor": "me"}, daemon=True)
    appending.start()
    appending.join(10)
    assert not appending.is_alive()
    assert words(log.read()) == ["1"]


def test_an_interrupt_behind_the_commit_takes_nothing_back_and_does_nothing_twice(log: Log) -> None:
    def interrupted() -> None:
        leave()
        raise KeyboardInterrupt

    leave = log.listen(interrupted)
    with pytest.raises(KeyboardInterrupt):
        log.append("task/a", done("1"), actor="me")
    assert log.append("task/a", done("2"), actor="me").revision == 2
    assert words(log.read()) == ["1", "2"]


def test_an_interrupt_of_the_leader_does_not_refuse_those_who_wait(log: Log) -> None:
    """The main thread leads for all; the others' requests are begun anew by one of them."""
    threads = [threading.Thread(target=log.append, args=("task/b", done("x")), kwargs={"actor": "me"}) for _ in "123"]

    def interrupted(view: object) -> list[Event]:
        for waiting, thread in enumerate(threads, start=1):
            if not thread.is_alive():
                thread.start()
            wait_until(partial(has_queued, log, waiting))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.decide("task/a", interrupted, actor="me")
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert words(log.read()) == ["x", "x", "x"]


@pytest.mark.parametrize(
    ("raised", "seen"), [(StopIteration, RuntimeError), (asyncio.CancelledError, asyncio.CancelledError)]
)
def test_what_a_future_cannot_hold_still_reaches_its_asyncio_caller(
    log: Log, raised: type[BaseException], seen: type[BaseException]
) -> None:
    def decider(view: object) -> list[Event]:
        raise raised

    async def decide() -> BaseException:
        deciding = asyncio.ensure_future(log.decide_async("task/a", decider, actor="me"))
        kept = log.append_async("task/a", done("kept"), actor="me")
        with pytest.raises(seen) as caught:
            await asyncio.wait_for(deciding, 10)
        assert (await asyncio.wait_for(kept, 10)).last == 1
        return caught.value

    assert isinstance(asyncio.run(decide()), seen)


def test_a_listener_that_raises_does_not_hide_the_commit(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []
    leave = log.listen(lambda: heard.append(1 // 0))
    log.listen(lambda: heard.append(log.head().position))
    assert log.append("task/a", done("1"), actor="me").last == 1
    leave()
    leave()
    assert log.append("task/a", done("2"), actor="me").last == 2
    assert (heard, caplog.text.count("a listener of the log failed")) == ([1, 2], 1)
