from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandkeep.events import (
    BadInput,
    Event,
    LmdbLog,
    LogUnavailable,
    Record,
    Subscription,
    SubscriptionBusy,
    SubscriptionDamaged,
    SubscriptionHalted,
    bookmark,
    subscription,
)
from sandkeep.events import catalogue as ev

from .support import done, go, wait_until, worker

Log = LmdbLog[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "subscriptions"


class Taker:
    """A handler that keeps the positions it was given, and fails on some of them so many times."""

    def __init__(self, **fails: int) -> None:
        self.positions: list[int] = []
        self.fails = {int(at[1:]): times for at, times in fails.items()}

    def __call__(self, record: Record) -> None:
        self.positions.append(record.position)
        if self.fails.get(record.position, 0) > 0:
            self.fails[record.position] -= 1
            raise ValueError(f"no {record.position}")


class Making:
    """Makes subscriptions and stops them in the end."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.made: list[Subscription] = []
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def __call__(self, handler: Any, name: str = "s", **options: Any) -> Subscription:
        made = Subscription(self.log, self.folder, name, handler, **{"sleep": self.sleep, **options})
        self.made.append(made)
        return made


@pytest.fixture
def make(log: Log, folder: Path) -> Iterator[Making]:
    making = Making(log, folder)
    yield making
    for made in making.made:
        assert made.stop(10)


def fill(log: Log, count: int) -> None:
    log.append("task/a", done(*(str(number) for number in range(count))), actor="me")


def test_it_takes_up_where_it_stopped(log: Log, make: Making) -> None:
    fill(log, 5)
    first, second = Taker(), Taker()
    running = make(first)
    assert (running.position, running.lag) == (None, None)
    running.start()
    wait_until(lambda: first.positions == [1, 2, 3, 4, 5])
    fill(log, 3)
    wait_until(lambda: first.positions == list(range(1, 9)))
    wait_until(lambda: (running.position, running.lag) == (8, 0))
    assert running.stop(10)
    assert running.stop(10)
    fill(log, 2)
    assert running.lag == 2
    again = make(second)
    again.start()
    wait_until(lambda: second.positions == [9, 10])


def test_it_begins_behind_a_position_and_can_be_started_again(log: Log, make: Making) -> None:
    fill(log, 5)
    taker = Taker()
    running = make(taker, after=3)
    for _ in range(2):
        running.start()
        wait_until(lambda: running.lag == 0)
        assert running.stop(10)
    assert taker.positions == [4, 5]


def test_two_names_have_a_position_each(log: Log, make: Making) -> None:
    fill(log, 3)
    takers = {name: Taker() for name in ("a", "b")}
    for name, taker in takers.items():
        make(taker, name).start()
        wait_until(lambda taker=taker: taker.positions == [1, 2, 3])  # type: ignore[misc]


def test_an_async_handler_is_awaited_record_by_record(log: Log, make: Making) -> None:
    fill(log, 5)
    seen: list[tuple[str, int]] = []

    async def handler(record: Record) -> None:
        seen.append(("begin", record.position))
        await asyncio.sleep(0)
        seen.append(("end", record.position))

    running = make(handler)
    running.start()
    wait_until(lambda: running.lag == 0)
    assert seen == [(what, position) for position in range(1, 6) for what in ("begin", "end")]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_runs_on_the_loop_of_its_caller(log: Log, make: Making, kind: str) -> None:
    fill(log, 300)
    positions: list[int] = []
    threads: set[threading.Thread] = set()

    def handler(record: Record) -> None:
        threads.add(threading.current_thread())
        positions.append(record.position)

    async def async_handler(record: Record) -> None:
        handler(record)

    running = make(handler if kind == "sync" else async_handler)

    async def main() -> None:
        task = asyncio.create_task(running.run_async())
        while len(positions) < 300:
            await asyncio.sleep(0.001)
        await log.append_async("task/a", done("x"), actor="me")
        while len(positions) < 301:
            await asyncio.sleep(0.001)
        running.stop()
        await task

    asyncio.run(main())
    assert positions == list(range(1, 302))
    assert (threading.main_thread() in threads) is (kind == "async")


def test_cancelling_it_keeps_what_was_dealt_with(log: Log, make: Making) -> None:
    fill(log, 5)
    reached: list[int] = []

    async def handler(record: Record) -> None:
        reached.append(record.position)
        if record.position == 3:
            await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(make(handler).run_async())
        while reached != [1, 2, 3]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    taker = Taker()
    make(taker).start()
    wait_until(lambda: taker.positions == [3, 4, 5])


def test_a_handler_that_fails_is_tried_again_after_growing_pauses(log: Log, make: Making) -> None:
    fill(log, 3)
    taker = Taker(p2=4)
    running = make(taker, longest_pause=0.5)
    running.start()
    wait_until(lambda: running.lag == 0)
    assert taker.positions == [1, 2, 2, 2, 2, 2, 3]
    assert make.pauses == [0.1, 0.2, 0.4, 0.5]
    assert log.head().position == 3


def failures(log: Log) -> list[Event]:
    return [record.event for record in log.read() if record.type == "HandlerFailed"]


def test_after_the_last_try_it_says_so_and_goes_on(log: Log, make: Making) -> None:
    fill(log, 3)
    taker = Taker(p2=99)
    running = make(taker, on_failure="go-on", tries=3)
    running.start()
    wait_until(lambda: running.position == 4)
    assert taker.positions == [1, 2, 2, 2, 3, 4]
    assert failures(log) == [ev.HandlerFailed("s", 2, "ValueError: no 2", halted=False)]
    (record,) = log.read_stream("subscription/s")
    assert (record.cause, record.actor) == (2, "subscription:s")
    assert running.failure is None


def test_or_it_halts_before_the_record(log: Log, make: Making) -> None:
    fill(log, 3)
    taker = Taker(p2=6)
    running = make(taker, on_failure="halt", tries=3)
    with pytest.raises(SubscriptionHalted, match="'s' stands before position 2: ValueError: no 2; mend") as caught:
        running.run()
    assert isinstance(caught.value.__cause__, ValueError)
    running.start()
    wait_until(lambda: isinstance(running.failure, SubscriptionHalted))
    assert running.position == 1
    assert failures(log) == [ev.HandlerFailed("s", 2, "ValueError: no 2", halted=True)]
    running.stop()
    running.start()  # the handler has been mended
    wait_until(lambda: running.position == 4)
    assert taker.positions == [1, 2, 2, 2, 2, 2, 2, 2, 3, 4]
    assert running.failure is None


def test_subscriptions_that_fail_on_failures_do_not_feed_each_other(log: Log, make: Making) -> None:
    def fail(record: Record) -> None:
        raise ValueError

    fill(log, 2)
    pair = [make(fail, name, on_failure="go-on", tries=1) for name in "ab"]
    for each in pair:
        each.start()
    wait_until(lambda: [each.position for each in pair] == [6, 6])
    assert len(failures(log)) == 4


def test_a_failure_recorded_before_a_crash_is_not_recorded_again(log: Log, make: Making, folder: Path) -> None:
    fill(log, 2)
    failed = [ev.HandlerFailed("s", 1, "other words", halted=False)]
    log.append("subscription/s", failed, actor="subscription:s", key="failed-1")
    running = make(Taker(p1=99), on_failure="go-on", tries=1)
    running.start()
    wait_until(lambda: running.position == 3)
    assert len(failures(log)) == 1


def test_one_consumer_at_a_time(log: Log, make: Making, path: Path, folder: Path) -> None:
    first = make(Taker())
    first.start()
    for other in (make(Taker()), make(Taker())):
        with pytest.raises(SubscriptionBusy, match="has a consumer"):
            other.start()
    with pytest.raises(BadInput, match="runs already"):
        first.start()
    assert first.stop(10)
    with worker("subscribe", path, folder / "s") as process:
        go(process)
        fill(log, 1)
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        with pytest.raises(SubscriptionBusy):
            first.start()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    first.start()


def test_a_killed_consumer_loses_nothing_and_repeats_little(log: Log, path: Path, folder: Path, make: Making) -> None:
    given: list[int] = []
    for _ in range(3):
        fill(log, 600)
        with worker("subscribe", path, folder / "s") as process:
            go(process)
            assert process.stdout is not None
            for _ in range(300):
                given.append(int(process.stdout.readline()))
            os.kill(process.pid, signal.SIGKILL)
            given += [int(line) for line in process.stdout.read().splitlines()]
    taker = Taker()
    running = make(taker)
    running.start()
    wait_until(lambda: running.lag == 0)
    given += taker.positions
    assert sorted(set(given)) == list(range(1, 1801))
    # In order, but for going back to what was stored last.
    assert all(after <= before + 1 for before, after in itertools.pairwise(given))


def test_its_position_costs_few_writes_and_none_in_the_log(
    log: Log, make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    move = bookmark.Bookmark.move

    def counting(self: bookmark.Bookmark, record: Record) -> None:
        moved.append(record.position)
        move(self, record)

    monkeypatch.setattr(bookmark.Bookmark, "move", counting)
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", 3600.0)
    for _ in range(3):
        fill(log, 1000)
    fill(log, 10)
    running = make(Taker())
    running.start()
    wait_until(lambda: running.lag == 0)
    assert moved == [1000, 2000, 3000]
    assert log.head().position == 3010
    assert running.stop(10)
    assert moved[3:] == [3010]


def test_its_position_is_stored_soon_when_little_comes(
    log: Log, make: Making, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", 0.05)
    running = make(Taker(), poll_seconds=60)
    running.start()
    fill(log, 1)
    wait_until(lambda: (folder / "s").stat().st_size > 0)


def test_stopping_cuts_a_pause_short(log: Log, make: Making) -> None:
    fill(log, 1)
    taker = Taker(p1=99)
    running = make(taker, sleep=None, first_pause=3600.0, longest_pause=3600.0)
    running.start()
    wait_until(lambda: taker.positions == [1])
    begun = time.monotonic()
    assert running.stop(10)
    assert time.monotonic() - begun < 5
    assert (running.position, failures(log)) == (0, [])


def test_stopping_lets_the_handler_finish_its_record(log: Log, make: Making) -> None:
    fill(log, 3)
    begun, free = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow(record: Record) -> None:
        begun.set()
        assert free.wait(20)
        ended.append(record.position)

    running = make(slow)
    running.start()
    assert begun.wait(10)
    assert not running.stop(0.05)
    free.set()
    assert running.stop(10)
    assert (ended, running.position) == ([1], 1)


def test_a_handler_may_stop_it_and_append(log: Log, make: Making) -> None:
    def handler(record: Record) -> None:
        fill(log, 1)
        if record.position == 3:
            running.stop()

    running = make(handler)
    fill(log, 1)
    running.start()
    wait_until(lambda: running.position == 3)
    assert running.stop(10)
    assert log.head().position == 4


def test_a_log_that_is_closed_ends_it(log: Log, make: Making) -> None:
    running = make(Taker(), poll_seconds=0.01)
    running.start()
    log.close()
    wait_until(lambda: isinstance(running.failure, LogUnavailable))


@pytest.mark.parametrize("options", [{"name": "../x"}, {"name": ""}, {"name": "x" * 65}, {"tries": 0}, {"after": -1}])
def test_what_cannot_be_is_refused(make: Making, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        make(Taker(), **options)


def at(position: int) -> Record:
    return Record(position, "task/a", position, 0, "me", None, None, "T", 1, msgspec.Raw(b"\x80"))


def stored(log: Log, folder: Path, *positions: int) -> Path:
    folder.mkdir(exist_ok=True)
    mark = bookmark.Bookmark(folder / "s", log.log_id, 0)
    for position in positions:
        mark.move(at(position))
    mark.close()
    return folder / "s"


def test_a_position_that_was_written_by_half_is_the_one_before(log: Log, folder: Path) -> None:
    path = stored(log, folder, 10, 20)
    content = bytearray(path.read_bytes())
    content[30] ^= 1  # in the slot of the second
    path.write_bytes(content)
    mark = bookmark.Bookmark(path, log.log_id, 0)
    assert mark.position == 10
    mark.move(at(11))
    mark.close()
    mark = bookmark.Bookmark(path, log.log_id, 0)
    assert mark.position == 11
    mark.close()


def test_a_first_position_that_was_written_by_half_is_the_beginning(log: Log, folder: Path) -> None:
    path = stored(log, folder)
    for content in (b"", b"sks2 half", bytes(84)):
        path.write_bytes(content)
        mark = bookmark.Bookmark(path, log.log_id, 7)
        assert mark.position == 7
        mark.close()


def test_a_position_that_cannot_be_right_is_refused(log: Log, folder: Path, make: Making) -> None:
    fill(log, 5)
    path = stored(log, folder, 6)
    with pytest.raises(SubscriptionDamaged, match="says position 6, but the log ends at 5"):
        make(Taker()).start()
    path.write_bytes(b"x" * 9000)
    with pytest.raises(SubscriptionDamaged, match="is damaged"):
        make(Taker()).start()
    path.unlink()
    stored(log, folder, 1)
    with pytest.raises(SubscriptionDamaged, match="is of another log"):
        bookmark.Bookmark(path, bytes(16), 0)
    with pytest.raises(SubscriptionDamaged, match="the log has another record there: it has lost its end"):
        make(Taker()).start()
    path.unlink()
    running = make(Taker())
    running.start()
    wait_until(lambda: running.lag == 0)


def test_a_log_that_lost_its_end_and_grew_again_is_not_taken_up_behind_it(
    path: Path, folder: Path, tmp_path: Path
) -> None:
    """What came in place of the records that were dealt with is not passed over."""
    first: list[int] = []
    with contextlib.closing(Log(path)) as log:
        fill(log, 3)
        log.snapshot(tmp_path / "older")
        fill(log, 3)
        running = Subscription(log, folder, "s", lambda record: first.append(record.position))
        running.start()
        wait_until(lambda: running.lag == 0)
        assert running.stop(30)
    with contextlib.closing(Log(tmp_path / "older")) as log:
        fill(log, 9)
        again = Subscription(log, folder, "s", lambda record: None)
        for _ in range(2):
            with pytest.raises(SubscriptionDamaged, match="says position 6, but the log has another record there"):
                again.start()
        (folder / "s").unlink()
        again.start()
        wait_until(lambda: again.lag == 0)
        assert again.stop(30)
    assert first == [1, 2, 3, 4, 5, 6]


def test_a_position_that_cannot_be_stored_ends_it_and_says_why(
    log: Log, make: Making, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(log, 3)
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(os, "pwrite", full)
    running = make(Taker())
    running.start()
    wait_until(lambda: running.failure is not None)
    assert isinstance(running.failure, LogUnavailable)
    assert "cannot be stored" in str(running.failure)
    monkeypatch.undo()
    assert running.stop(30)
    running.start()
    wait_until(lambda: running.lag == 0)
    assert running.failure is None
    assert running.stop(30)
    (folder / "s").unlink()
    (folder / "s").mkdir()
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        running.start()
