from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reactivex
from reactivex import operators as ops

from sandkeep.events import Bus, Fault, Head, LmdbLog, LogDamaged, LogUnavailable, Missed, Record
from sandkeep.events import bus as bus_module

from .support import done, finish, flip, go, wait_until, worker

Log = LmdbLog[None]


@pytest.fixture
def bus(log: Log) -> Iterator[Bus]:
    bus = Bus(log, poll_seconds=0.01)
    yield bus
    bus.close()


class Collector:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.errors: list[Exception] = []
        self.completions = 0

    def on_next(self, record: Record) -> None:
        self.positions.append(record.position)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)

    def on_completed(self) -> None:
        self.completions += 1

    def of(self, records: reactivex.Observable[Record]) -> Collector:
        records.subscribe(self.on_next, self.on_error, self.on_completed)
        return self

    def wait(self, *positions: int) -> None:
        wait_until(lambda: len(self.positions) >= len(positions))
        assert self.positions == list(positions)


def append(log: Log, count: int = 1) -> None:
    for _ in range(count):
        log.append("task/a", done("x"), actor="me")


def failing_at(position: int) -> Callable[[Record], None]:
    def handler(record: Record) -> None:
        if record.position == position:
            raise ValueError(f"failed on {position}")

    return handler


def test_live_gives_what_is_committed_after_the_subscription(log: Log, bus: Bus) -> None:
    append(log, 2)
    first = Collector().of(bus.live())
    log.append("task/a", done("x", "y"), actor="me")
    first.wait(3, 4)
    second = Collector().of(bus.live())
    append(log)
    first.wait(3, 4, 5)
    second.wait(5)


def test_a_commit_while_one_subscribes_is_not_missed(log: Log, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    head, told = log.head, list[Missed]()

    def slow_head() -> Head:
        found = head()
        append(log)
        return found

    monkeypatch.setattr(log, "head", slow_head)
    collector = Collector().of(bus.live(missed=told.append))
    wait_until(lambda: len(collector.positions) >= 1)
    assert (collector.positions[0], told) == (1, [])


def test_a_subscription_begins_at_the_time_of_subscribing_not_of_asking(log: Log, bus: Bus) -> None:
    live = bus.live()
    append(log, 2)
    collector = Collector().of(live)
    append(log)
    collector.wait(3)


def test_live_gives_the_commits_of_other_processes(log: Log, path: Path, bus: Bus) -> None:
    collector = Collector().of(bus.live())
    with worker("append", path, 5) as process:
        go(process)
        collector.wait(1, 2, 3, 4, 5)
        assert len(finish(process)) == 5


@pytest.mark.parametrize("after", [0, 2, 4, 6], ids=str)
def test_catching_up_begins_behind_a_position(log: Log, bus: Bus, after: int) -> None:
    append(log, 4)
    collector = Collector().of(bus.catch_up(after))
    append(log, 4)
    collector.wait(*range(after + 1, 9))


def test_no_gap_and_no_repeat_while_a_thread_and_a_process_append(log: Log, path: Path, bus: Bus) -> None:
    append(log, 50)
    thread = threading.Thread(target=append, args=(log, 150))
    with worker("append", path, 150) as process:
        go(process)
        thread.start()
        collectors = []
        while thread.is_alive() or process.poll() is None:
            after = log.head().position
            collectors += [(0, Collector().of(bus.catch_up())), (after // 2, Collector().of(bus.catch_up(after // 2)))]
            collectors.append((after, Collector().of(bus.catch_up(after))))
            thread.join(0.01)
        assert len(finish(process)) == 150
    assert log.head().position == 350
    assert len(collectors) >= 3
    for after, collector in collectors:
        collector.wait(*range(after + 1, 351))


def test_a_failing_handler_is_reported_and_disturbs_nobody(
    log: Log, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    before, after = Collector().of(bus.live()), Collector()
    bus.live().subscribe(failing_at(2))
    after.of(bus.live())
    append(log, 4)
    before.wait(1, 2, 3, 4)
    after.wait(1, 2, 3, 4)
    wait_until(lambda: bool(faults))
    assert [(fault.position, str(fault.error)) for fault in faults] == [(2, "failed on 2")]
    assert "a subscriber failed on position 2" in caplog.text


def test_a_handler_that_failed_is_given_the_next_record(log: Log, bus: Bus) -> None:
    collector = Collector()

    def handler(record: Record) -> None:
        collector.on_next(record)
        failing_at(2)(record)

    bus.catch_up().subscribe(handler)
    append(log, 4)
    collector.wait(1, 2, 3, 4)


def test_a_fault_in_history_is_reported_too(log: Log, bus: Bus) -> None:
    append(log, 3)
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    bus.catch_up().subscribe(failing_at(2))
    wait_until(lambda: [fault.position for fault in faults] == [2])
    assert str(faults[0].error) == "failed on 2"


def test_a_failing_subscriber_of_the_faults_is_logged(log: Log, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    def fail(fault: Fault) -> None:
        raise RuntimeError

    bus.faults.subscribe(fail)
    bus.live().subscribe(failing_at(1))
    collector = Collector().of(bus.live())
    append(log, 2)
    collector.wait(1, 2)
    wait_until(lambda: "a subscriber of the faults failed on position 1" in caplog.text)


def test_records_appended_by_a_handler_keep_the_order_for_all(log: Log, bus: Bus) -> None:
    first, last = Collector().of(bus.live()), Collector()

    def handler(record: Record) -> None:
        if record.position <= 5:
            append(log, 2)

    bus.live().subscribe(handler)
    last.of(bus.live())
    append(log)
    first.wait(*range(1, 12))
    last.wait(*range(1, 12))


def test_a_disposed_subscription_gets_nothing_more(log: Log, bus: Bus) -> None:
    gone, stays = Collector(), Collector().of(bus.live())
    subscription = bus.live().subscribe(gone.on_next, gone.on_error, gone.on_completed)
    append(log)
    stays.wait(1)
    wait_until(lambda: gone.positions == [1])
    subscription.dispose()
    append(log)
    stays.wait(1, 2)
    bus.close()
    assert (gone.positions, gone.completions, stays.completions) == ([1], 0, 1)


def test_a_subscription_disposed_in_history_gets_nothing_more(log: Log, bus: Bus) -> None:
    append(log, 5)
    few, all_but_one, stays = Collector(), Collector(), Collector()
    few.of(bus.catch_up().pipe(ops.take(2)))
    all_but_one.of(bus.catch_up().pipe(ops.take(5)))
    stays.of(bus.catch_up())
    append(log)
    stays.wait(*range(1, 7))
    wait_until(lambda: (few.completions, all_but_one.completions) == (1, 1))
    assert (few.positions, all_but_one.positions) == ([1, 2], [1, 2, 3, 4, 5])


def test_map_and_filter_compose(log: Log, bus: Bus) -> None:
    seen: list[str] = []

    def even(record: Record) -> bool:
        return record.position % 2 == 0

    def name(record: Record) -> str:
        return f"{record.stream} {record.position}"

    bus.catch_up().pipe(ops.filter(even), ops.map(name)).subscribe(seen.append)
    append(log, 5)
    wait_until(lambda: len(seen) == 2)
    assert seen == ["task/a 2", "task/a 4"]


def test_closing_completes_every_subscription_and_ends_the_threads(log: Log, bus: Bus) -> None:
    append(log, 3)
    live, history = Collector().of(bus.live()), Collector().of(bus.catch_up())
    faults_ended = threading.Event()
    bus.faults.subscribe(on_completed=faults_ended.set)
    history.wait(1, 2, 3)
    bus.close()
    bus.close()
    append(log)
    assert (live.completions, history.completions, faults_ended.is_set()) == (1, 1, True)
    assert (live.positions, history.positions) == ([], [1, 2, 3])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sandkeep-")]


def test_closing_completes_a_subscription_that_is_still_in_history(log: Log, bus: Bus) -> None:
    append(log, 3)
    reading, closing, collector = threading.Event(), threading.Event(), Collector()

    def slow(record: Record) -> None:
        collector.on_next(record)
        reading.set()
        assert closing.wait(10)

    bus.catch_up().subscribe(slow, collector.on_error, collector.on_completed)
    assert reading.wait(10)
    closer = threading.Thread(target=bus.close)
    closer.start()
    wait_until(lambda: bus._closed)
    closing.set()
    closer.join()
    assert (collector.positions, collector.completions, collector.errors) == ([1], 1, [])


@pytest.mark.parametrize("history", [0, 3], ids=["live", "history"])
def test_a_handler_may_close_the_bus(log: Log, bus: Bus, history: int) -> None:
    append(log, history)
    collector = Collector()

    def handler(record: Record) -> None:
        collector.on_next(record)
        bus.close()

    bus.catch_up().subscribe(handler, collector.on_error, collector.on_completed)
    append(log, 3)
    wait_until(lambda: collector.completions == 1)
    assert (collector.positions, collector.errors) == ([1], [])


def test_a_subscriber_that_fails_at_the_end_does_not_keep_it_from_others(
    log: Log, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError

    bus.live().subscribe(on_completed=fail)
    collector = Collector().of(bus.live())
    bus.close()
    assert collector.completions == 1
    assert "could not be told of the end" in caplog.text


def test_a_closed_bus_completes_a_new_subscription_at_once(log: Log, bus: Bus) -> None:
    bus.close()
    inner = Collector()

    def again() -> None:
        inner.of(bus.live())

    bus.live().subscribe(on_completed=again)
    assert (inner.completions, inner.positions) == (1, [])


def test_a_log_that_can_no_longer_be_read_ends_every_subscription(
    log: Log, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.live().subscribe(lambda record: None)
    first, second = Collector().of(bus.live()), Collector().of(bus.catch_up())
    log.close()
    wait_until(lambda: bool(first.errors and second.errors))
    assert isinstance(first.errors[0], LogUnavailable)
    wait_until(lambda: "could not be told of the end" in caplog.text)
    late = Collector().of(bus.catch_up(99))
    assert [type(error) for error in late.errors] == [LogUnavailable]


def test_damage_in_history_ends_that_subscription_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log(path)
    log.append("task/a", done("needle"), actor="me")
    append(log)
    log.close()
    flip(path / "data.mdb", b"needle")
    log = Log(path)
    bus = Bus(log, poll_seconds=0.01)
    live, broken = Collector().of(bus.live()), Collector().of(bus.catch_up())
    bus.catch_up().subscribe(lambda record: None)
    append(log)
    live.wait(3)
    wait_until(lambda: bool(broken.errors) and "could not be told of the end" in caplog.text)
    assert isinstance(broken.errors[0], LogDamaged)
    assert live.errors == []
    bus.close()
    log.close()


def boom(record: Record) -> Record:
    if record.position == 2:
        raise ValueError("boom on 2")
    return record


def unless_boom(record: Record) -> bool:
    return boom(record) is record


def last_boom(last: Record | None, record: Record) -> Record | None:
    return boom(record)


@pytest.mark.parametrize("handled", [True, False], ids=["on_error", "no on_error"])
@pytest.mark.parametrize(
    "operator", [ops.map(boom), ops.filter(unless_boom), ops.scan(last_boom, None)], ids=["map", "filter", "scan"]
)
def test_an_operator_that_raises_ends_its_chain_only_and_is_reported(
    log: Log, bus: Bus, operator: Callable[..., reactivex.Observable[Record]], handled: bool
) -> None:
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    broken, whole = Collector(), Collector().of(bus.live())
    chain = bus.live().pipe(operator)
    chain.subscribe(broken.on_next, broken.on_error if handled else None, broken.on_completed)
    append(log, 4)
    whole.wait(1, 2, 3, 4)
    wait_until(lambda: bool(faults))
    assert [(fault.position, str(fault.error), fault.ended) for fault in faults] == [(2, "boom on 2", True)]
    assert (broken.positions, broken.completions) == ([1], 0)
    assert [str(error) for error in broken.errors] == (["boom on 2"] if handled else [])
    assert len(bus._subscribers) == 1


@pytest.mark.parametrize("after", [None, 0], ids=["live", "catch up"])
def test_a_chain_that_is_retried_goes_on_behind_the_record_that_failed(log: Log, bus: Bus, after: int | None) -> None:
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    source = bus.live() if after is None else bus.catch_up(after)
    collector = Collector().of(source.pipe(ops.map(boom), ops.retry()))
    log.append("task/a", done(*"abcdef"), actor="me")
    collector.wait(1, 3, 4, 5, 6)
    wait_until(lambda: bool(faults))  # told by the thread that failed, when the new one may be done already
    assert [(fault.position, fault.ended) for fault in faults] == [(2, True)]


def test_a_handler_that_catches_its_own_error_and_subscribes_elsewhere_gets_all_of_it(log: Log, bus: Bus) -> None:
    inner = Collector()

    def handler(record: Record) -> None:
        try:
            boom(record)
        except ValueError:
            inner.of(bus.catch_up())

    append(log, 3)
    bus.catch_up().subscribe(handler)
    inner.wait(1, 2, 3)


def test_a_chain_that_takes_enough_is_no_fault(log: Log, bus: Bus) -> None:
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    few, all_ = Collector().of(bus.live().pipe(ops.take(1))), Collector().of(bus.live())
    append(log, 3)
    all_.wait(1, 2, 3)
    assert (few.positions, few.completions, faults) == ([1], 1, [])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of eight records, and no patience."""
    monkeypatch.setattr(bus_module, "WINDOW", 8)
    monkeypatch.setattr(bus_module, "_PAGE", 4)
    monkeypatch.setattr(bus_module, "PATIENCE_SECONDS", 0.02)


@pytest.mark.usefixtures("small")
def test_a_slow_subscriber_is_told_what_it_missed_and_delays_nobody(log: Log, bus: Bus) -> None:
    told: list[int | Missed] = []
    first, free = threading.Event(), threading.Event()

    def slow(record: Record) -> None:
        told.append(record.position)
        first.set()
        assert free.wait(20)

    bus.live(missed=told.append).subscribe(slow)
    quick, history = Collector().of(bus.live()), Collector().of(bus.catch_up())
    append(log)
    assert first.wait(10)
    for _ in range(25):
        log.append("task/a", done(*"abcd"), actor="me")
    quick.wait(*range(1, 102))
    history.wait(*range(1, 102))
    assert told == [1]
    assert len(bus._window) < 24
    free.set()
    wait_until(lambda: told[-1] == 101)
    (missed,) = (each for each in told if isinstance(each, Missed))
    at = told.index(missed)
    assert missed == Missed(missed.last - missed.first + 1, missed.first, missed.last)
    assert told[:at] == list(range(1, missed.first))
    assert told[at + 1 :] == list(range(missed.last + 1, 102))
    assert missed.count >= 80


@pytest.mark.usefixtures("small")
def test_a_slow_catch_up_misses_nothing(log: Log, bus: Bus) -> None:
    collector, free = Collector(), threading.Event()

    def slow(record: Record) -> None:
        assert free.wait(20)
        collector.on_next(record)

    bus.catch_up().subscribe(slow)
    quick = Collector().of(bus.live())
    for _ in range(25):
        log.append("task/a", done(*"abcd"), actor="me")
    quick.wait(*range(1, 101))
    free.set()
    collector.wait(*range(1, 101))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fails", [True, False], ids=["raises", "is missing"])
def test_being_told_may_fail_or_be_left_to_the_log(
    log: Log, bus: Bus, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[Fault] = []
    bus.faults.subscribe(faults.append)
    first, free, last = threading.Event(), threading.Event(), threading.Event()

    def slow(record: Record) -> None:
        first.set()
        assert free.wait(20)
        if record.position == 101:
            last.set()

    def fail(missed: Missed) -> None:
        raise RuntimeError

    bus.live(missed=fail if fails else None).subscribe(slow)
    quick = Collector().of(bus.live())
    append(log)
    assert first.wait(10)
    for _ in range(25):
        log.append("task/a", done(*"abcd"), actor="me")
    quick.wait(*range(1, 102))
    free.set()
    assert last.wait(10)
    assert [type(fault.error) for fault in faults] == ([RuntimeError] if fails else [])
    assert ("a subscriber was too slow and missed" in caplog.text) is not fails


def test_the_threads_are_there_only_while_something_subscribes(log: Log, bus: Bus) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("sandkeep-")]

    assert threads() == []
    for turn in range(3):
        collector = Collector()
        subscription = bus.live().subscribe(collector.on_next)
        append(log)
        collector.wait(turn + 1)
        assert sorted(threads()) == ["sandkeep-bus", "sandkeep-subscriber"]
        subscription.dispose()
        wait_until(lambda: threads() == [])
        append(log, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_subscriber_whose_thread_is_ended_holds_up_nobody(log: Log, bus: Bus) -> None:
    bus.live().subscribe(lambda record: sys.exit())
    collector = Collector().of(bus.live())
    append(log, 3)
    collector.wait(1, 2, 3)
    wait_until(lambda: len(bus._subscribers) == 1)
