"""Points 1, 4, 11, 13, 14 and 16: many callers at once, and what is there after an end, of whatever kind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

import msgspec
import pytest

from sandkeep.events import LogUnavailable, RevisionConflict

from ..support import DEADLINE_SECONDS, done, finish, go, words
from .subject import Capability, Subject, append, needs


def together(count: int, work: Callable[[int], None]) -> None:
    """Do `work` on as many threads, to the end."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def test_threads_append_at_once(subject: Subject) -> None:
    log = subject.log

    def write(number: int) -> None:
        for count in range(25):
            append(log, f"{number}", f"{count}", stream=f"task/{number % 2}")

    together(6, write)
    pairs = list(zip(*[iter(words(log.read()))] * 2, strict=True))
    assert sorted(pairs) == sorted((f"{number}", f"{count}") for number in range(6) for count in range(25))
    subject.whole(300)


def test_one_of_many_threads_wins_an_expected_revision(subject: Subject) -> None:
    log = subject.log
    won: list[int] = []

    def race(number: int) -> None:
        with contextlib.suppress(RevisionConflict):
            log.append("task/a", done(f"{number}"), actor="me", expected=0)
            won.append(number)

    together(8, race)
    assert words(log.read()) == [str(number) for number in won]
    assert len(won) == 1


def test_one_of_many_repeats_is_stored(subject: Subject) -> None:
    log = subject.log
    receipts = []
    together(8, lambda number: receipts.append(log.append("task/a", done("x"), actor=f"{number}", key="k")))
    assert sorted(receipt.repeated for receipt in receipts) == [False] + [True] * 7
    assert {receipt.first for receipt in receipts} == {1}
    subject.whole(1)


def test_asyncio_callers_get_their_own_answers(subject: Subject) -> None:
    log = subject.log

    async def caller(number: int) -> list[int]:
        return [(await log.append_async(f"task/{number}", done("x"), actor="me")).revision for _ in range(20)]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(caller(number) for number in range(32)))

    assert asyncio.run(all_of_them()) == [list(range(1, 21))] * 32
    subject.whole(640)


def test_an_asyncio_caller_gets_its_refusal(subject: Subject) -> None:
    log = subject.log

    async def decided() -> int:
        return (await log.decide_async("task/a", lambda view: done(f"{len(view)}"), actor="me")).last

    with subject.refused(RevisionConflict):
        asyncio.run(log.append_async("task/a", done("1"), actor="me", expected=7))
    assert asyncio.run(decided()) == 1


def test_a_cancelled_asyncio_caller_disturbs_nobody(subject: Subject) -> None:
    log = subject.log

    async def run() -> None:
        appends = [asyncio.ensure_future(log.append_async("task/a", done(f"{n}"), actor="me")) for n in range(10)]
        await asyncio.sleep(0)
        for each in appends[::2]:
            each.cancel()
        kept = await asyncio.gather(*appends, return_exceptions=True)
        positions = [receipt.first for receipt in kept if not isinstance(receipt, BaseException)]
        assert len(positions) >= 5
        by_position = {record.position: word for record, word in zip(log.read(), words(log.read()), strict=False)}
        assert [by_position[position] for position in positions[-1:]] == ["9"]

    asyncio.run(run())
    assert {"1", "3", "5", "7", "9"} <= set(words(subject.log.read()))
    assert append(log, "after") == log.head().position


def test_threads_and_loops_mix(subject: Subject) -> None:
    log = subject.log

    async def on_a_loop() -> None:
        await asyncio.gather(*(log.append_async("task/loop", done("x"), actor="me") for _ in range(200)))

    def work(number: int) -> None:
        if number % 3 == 0:
            asyncio.run(on_a_loop())
            return
        for _ in range(50):
            append(log, "x", stream="task/thread")

    together(6, work)
    assert [r.revision for r in log.read_stream("task/thread")] == list(range(1, 201))
    subject.whole(600)


@needs(Capability.PROCESSES)
def test_processes_append_and_decide_at_once(subject: Subject) -> None:
    log = subject.log
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(subject.elsewhere("append", 60)) for _ in range(3)]
        for process in workers:
            go(process)
        for _ in range(60):
            log.decide("task/shared", lambda view: done(f"{len(view)}"), actor="decider")
        acknowledged = [int(line) for process in workers for line in finish(process)]
    decided = [r for r in log.read() if r.actor == "decider"]
    assert sorted(acknowledged + [r.position for r in decided]) == list(range(1, 241))
    assert words(decided) == [str(r.position - 1) for r in decided]
    subject.whole(240)


@needs(Capability.PROCESSES)
def test_a_killed_process_loses_nothing_it_acknowledged(subject: Subject) -> None:
    acknowledged: list[int] = []
    for turn in range(3):
        with subject.elsewhere("forever", turn) as process:
            go(process)
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(20)]
            os.kill(process.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout.read().splitlines()]
            assert process.wait() == -signal.SIGKILL
    head = subject.log.head().position
    assert acknowledged == sorted(set(acknowledged))
    assert set(acknowledged) <= {r.position for r in subject.log.read()}
    assert head - len(acknowledged) <= 3
    assert subject.log.append("task/shared", done("after"), actor="me", expected=head).first == head + 1
    subject.whole(head + 1)


@needs(Capability.PROCESSES)
def test_a_killed_writer_does_not_hold_up_a_log_that_is_open(subject: Subject) -> None:
    log = subject.log
    with subject.elsewhere("forever", "x") as process:
        go(process)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    head = log.head().position
    assert append(log, "after", stream="task/shared") == head + 1
    subject.whole(head + 1)


@needs(Capability.REOPENED)
def test_what_was_appended_is_there_after_reopening(subject: Subject) -> None:
    log = subject.log
    log_id, receipt = log.log_id, log.append("task/a", done("1"), actor="me", key="k", expected=0)
    log.append("task/a", done("2"), actor="me", fence=1)
    head, records = log.head(), list(log.read())
    subject.close()
    log = subject.log
    assert (log.log_id, log.head(), list(log.read())) == (log_id, head, records)
    assert log.append("task/a", done("1"), actor="me", key="k") == msgspec.structs.replace(receipt, repeated=True)
    log.append("task/a", done("3"), actor="me", expected=2)
    assert words(log.read()) == ["1", "2", "3"]
    subject.whole(3)


def test_a_closed_log_refuses_everything(subject: Subject) -> None:
    log = subject.log
    append(log, "x")
    reader = log.read()
    log.close()
    log.close()
    for call in (
        log.head,
        lambda: append(log, "x"),
        lambda: log.decide("task/a", lambda view: done("x"), actor="me"),
        lambda: next(reader),
        lambda: next(log.read_stream("task/a")),
        lambda: asyncio.run(log.append_async("task/a", done("x"), actor="me")),
    ):
        with pytest.raises(LogUnavailable, match="closed"):
            call()


@needs(Capability.SECOND_COPY)
def test_a_log_that_is_lost_comes_back_from_its_second_copy(subject: Subject) -> None:
    log = subject.log
    for number in range(40):  # over several segments
        log.append(f"task/{number % 3}", done(f"{number}"), actor="me", key=f"{number}")
    log_id, incarnation, records = log.log_id, log.incarnation, list(log.read())
    subject.close()
    subject.backend.lose(subject.folder)
    log = subject.log
    assert (log.log_id, list(log.read(until=40))) == (log_id, records)
    assert log.incarnation != incarnation
    assert log.append("task/2", done("2"), actor="you", key="2").first == 3
    subject.whole(41)
