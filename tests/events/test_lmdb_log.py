from __future__ import annotations

import contextlib
import itertools
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import (
    BadInput,
    Event,
    EventLog,
    Head,
    KeyReused,
    LimitReached,
    LmdbLog,
    LogUnavailable,
    Receipt,
    RevisionConflict,
    StaleFence,
    UnknownEvent,
    codec,
)
from sandkeep.events import catalogue as ev
from sandkeep.events.log import MAX_EVENT_BYTES, MAX_EVENTS

from .support import done, words

Log = LmdbLog[None]


def test_a_new_log_is_empty(log: Log) -> None:
    assert log.head() == Head(0, codec.GENESIS, 0)
    assert list(log.read()) == list(log.read_stream("task/a")) == []
    assert len(log.log_id) == 16


def test_the_log_keeps_the_protocol(log: Log) -> None:
    kept: EventLog[None] = log
    assert kept.log_id == log.log_id


def test_positions_run_over_the_log_and_revisions_over_each_stream(log: Log) -> None:
    assert (log.append("task/a", done("1", "2"), actor="me").last, log.head().position) == (2, 2)
    log.append("task/b", done("3"), actor="me")
    receipt = log.append("task/a", done("4", "5"), actor="me")
    assert (receipt.first, receipt.last, receipt.revision, receipt.repeated) == (4, 5, 4, False)
    found = [(r.position, r.stream, r.revision) for r in log.read()]
    assert found == [(1, "task/a", 1), (2, "task/a", 2), (3, "task/b", 1), (4, "task/a", 3), (5, "task/a", 4)]


def test_a_record_keeps_its_whole_envelope(log: Log) -> None:
    first = log.append("task/a", done("x"), actor="Ágnes", key="k")
    log.append("keep", done("y"), actor="me", cause=first.first)
    one, two = log.read()
    assert (one.actor, one.key, one.cause, one.type, one.version) == ("Ágnes", "k", None, "TaskCompleted", 1)
    assert (one.time_ns, one.event, two.cause, two.key) == (first.time_ns, done("x")[0], 1, None)


def test_streams_whose_names_begin_alike_are_apart(log: Log) -> None:
    for stream in ("task/a", "task/ab", "task", "task/a.b", "task/a"):
        log.append(stream, done(stream), actor="me")
    for stream, revision in (("task", 2), ("task/a", 3), ("task/ab", 2), ("task/a.b", 2)):
        assert log.append(stream, done("x"), actor="me").revision == revision
    assert [r.position for r in log.read_stream("task/a")] == [1, 5, 7]
    assert list(log.read_stream("tas")) == []


def test_any_range_is_read_across_frames(log: Log) -> None:
    for count in (1, 3, 2):
        log.append("task/a", done(*"x" * count), actor="me")
    for after, until in itertools.product(range(8), [None, *range(8)]):
        last = 6 if until is None else min(until, 6)
        assert [r.position for r in log.read(after, until=until)] == list(range(after + 1, last + 1))
        assert [r.revision for r in log.read_stream("task/a", after)] == list(range(after + 1, 7))


def test_more_than_a_page_is_read(log: Log) -> None:
    big = "x" * 60_000
    for number in range(300):
        log.append(f"task/{number % 2}", done(f"{number}", *([big] if number < 40 else [])), actor="me")
    assert [r.position for r in log.read()] == list(range(1, 341))
    assert [r.revision for r in log.read_stream("task/1")] == list(range(1, 171))


def test_a_reader_sees_what_is_appended_before_it_ends(log: Log) -> None:
    log.append("task/a", done("1"), actor="me")
    reader = log.read()
    assert next(reader).position == 1
    log.append("task/a", done("2"), actor="me")
    assert [r.position for r in reader] == [2]


def test_an_expected_revision_must_hold(log: Log) -> None:
    assert log.append("task/a", done("1", "2"), actor="me", expected=0).revision == 2
    assert log.append("task/a", done("3"), actor="me", expected=2).revision == 3
    before = log.head()
    for expected in (0, 2, 4):
        with pytest.raises(RevisionConflict, match=f"at revision 3, not {expected}"):
            log.append("task/a", done("4"), actor="me", expected=expected, key="k", fence=1)
    assert log.head() == before
    assert words(log.read()) == ["1", "2", "3"]
    assert log.append("task/a", done("4"), actor="me", expected=3, key="k").repeated is False


def test_a_repeated_key_returns_the_first_receipt_and_stores_nothing(log: Log) -> None:
    first = log.append("task/a", done("1", "2"), actor="me", expected=0, key="k")
    log.append("task/a", done("3"), actor="me")
    again = log.append("task/a", done("1", "2"), actor="you", expected=0, key="k")
    assert again == msgspec.structs.replace(first, repeated=True)
    assert log.head().position == 3


def test_a_key_belongs_to_its_stream(log: Log) -> None:
    log.append("task/a", done("1"), actor="me", key="k")
    assert log.append("task/b", done("1"), actor="me", key="k") == Receipt(2, 2, 1, log.head().time_ns)


def test_a_key_used_for_other_events_is_refused(log: Log) -> None:
    log.append("task/a", done("1"), actor="me", key="k")
    for other in (done("2"), done("1", "1"), [ev.TaskFailed(reason="1")]):
        with pytest.raises(KeyReused, match="'k' on task/a was used for other events at position 1"):
            log.append("task/a", other, actor="me", key="k")
    assert words(log.read()) == ["1"]


def test_a_token_older_than_one_seen_is_stale(log: Log) -> None:
    log.append("task/a", done("1", "2", "3"), actor="me")
    log.append("task/a", done("4"), actor="me", fence=2)
    log.append("task/a", done("5"), actor="me", fence=2)
    log.append("task/a", done("6"), actor="me", fence=3)
    with pytest.raises(StaleFence, match="token 2 on task/a is stale: 3 was granted since"):
        log.append("task/a", done("7"), actor="me", fence=2)
    log.append("task/b", done("7"), actor="me", fence=2)
    assert words(log.read()) == list("1234567")


def test_a_refused_append_does_not_raise_the_fence(log: Log) -> None:
    log.append("task/a", done("1", "2"), actor="me")
    with pytest.raises(BadInput):
        log.append("task/a", done("3"), actor="me", fence=2, cause=9)
    assert log.append("task/a", done("3"), actor="me", fence=1).first == 3


@pytest.mark.parametrize("token", [0, -1, 3, 2**70])
def test_tokens_and_causes_name_a_position_of_the_log(log: Log, token: int) -> None:
    log.append("task/a", done("1", "2"), actor="me")
    with pytest.raises(BadInput, match=f"{token} names no position of this log"):
        log.append("task/a", done("3"), actor="me", fence=token)
    with pytest.raises(BadInput, match=f"{token} names no position of this log"):
        log.append("task/a", done("3"), actor="me", cause=token)
    assert log.head().position == 2


def test_time_never_decreases_while_the_clock_does(path: Path) -> None:
    clock = iter([50, 10, 70, 60])
    with contextlib.closing(Log(path, clock=lambda: next(clock))) as log:
        times = [log.append("task/a", done("x"), actor="me").time_ns for _ in range(4)]
        assert times == [50, 50, 70, 70] == [r.time_ns for r in log.read()]
        assert log.head().time_ns == 70


@pytest.mark.parametrize(
    "stream",
    [
        *(
            "",
            "task/",
            "/a",
            "Task/a",
            "task/a/b",
            "task/-a",
            "task/a b",
            "task/ä",
            "task/a\n",
            "task/\udcff",
            "task\0",
        ),
        *("a" * 17, "task/" + "a" * 129),
    ],
    ids=ascii,
)
def test_a_bad_stream_name_is_refused(log: Log, stream: str) -> None:
    with pytest.raises(BadInput, match="is no stream name"):
        log.append(stream, done("x"), actor="me")
    assert log.head().position == 0


def test_the_longest_names_are_taken(log: Log) -> None:
    stream = "a" * 16 + "/" + "B" * 128
    assert log.append(stream, done("x"), actor="ä" * 200, key="k" * 200, expected=0).revision == 1
    assert log.append(stream, done("x"), actor="ä" * 200, key="k" * 200).repeated
    assert [r.stream for r in log.read_stream(stream)] == [stream]


@pytest.mark.parametrize("actor", ["", "a" * 201, "a\nb", "\udcff"], ids=ascii)
def test_a_bad_actor_is_refused(log: Log, actor: str) -> None:
    with pytest.raises(BadInput, match="actor"):
        log.append("task/a", done("x"), actor=actor)
    assert log.head().position == 0


@pytest.mark.parametrize("key", ["", "k" * 201, "ä", "\udcff"], ids=ascii)
def test_a_bad_key_is_refused(log: Log, key: str) -> None:
    with pytest.raises(BadInput, match="idempotency key"):
        log.append("task/a", done("x"), actor="me", key=key)
    assert log.head().position == 0


class Loose(Event, frozen=True):
    """Not registered."""


@pytest.mark.parametrize(
    "event",
    [
        ev.TaskCompleted(summary="\udcff"),
        ev.TaskCompleted(summary=3),  # type: ignore[arg-type]
        ev.TaskCompleted(summary=object()),  # type: ignore[arg-type]
        ev.KeepCreated(format=2**70, public_key=b""),
        UnknownEvent("Later", 1, b"\xc1"),
        UnknownEvent("Later", 1, b"\x80\x80"),
        UnknownEvent("TaskCompleted", 1, b"\x80"),
        Loose(),
    ],
    ids=["surrogate", "type", "object", "65 bits", "malformed", "two values", "known misfit", "unregistered"],
)
def test_an_event_that_could_not_be_read_back_is_refused(log: Log, event: Event) -> None:
    with pytest.raises(BadInput):
        log.append("task/a", [*done("good"), event], actor="me")
    assert log.head().position == 0


def test_an_event_of_a_later_version_keeps_its_bytes(log: Log) -> None:
    later = UnknownEvent("Later", 7, msgspec.msgpack.encode({"x": [1]}))
    log.append("task/a", [later], actor="me")
    assert [r.event for r in log.read()] == [later]


def test_limits_are_exact(log: Log) -> None:
    with pytest.raises(BadInput, match="at least one event"):
        log.append("task/a", [], actor="me")
    with pytest.raises(LimitReached, match="split them"):
        log.append("task/a", done(*"x" * (MAX_EVENTS + 1)), actor="me")
    room = MAX_EVENT_BYTES - len(msgspec.msgpack.encode({"summary": "x" * 60_000})) + 60_000
    with pytest.raises(LimitReached, match="store its content as a blob"):
        log.append("task/a", done("x" * (room + 1)), actor="me")
    assert log.head().position == 0
    log.append("task/a", done("x" * room), actor="me")
    log.append("task/a", done(*"x" * MAX_EVENTS), actor="me")
    assert log.head().position == MAX_EVENTS + 1


def test_what_was_appended_is_there_after_reopening(path: Path) -> None:
    with contextlib.closing(Log(path)) as log:
        log_id, receipt = log.log_id, log.append("task/a", done("1"), actor="me", key="k", expected=0)
        log.append("task/a", done("2"), actor="me", fence=1)
        head = log.head()
    with contextlib.closing(Log(path)) as log:
        assert (log.log_id, log.head()) == (log_id, head)
        assert log.append("task/a", done("1"), actor="me", key="k") == msgspec.structs.replace(receipt, repeated=True)
        log.append("task/a", done("3"), actor="me", expected=2)
        assert words(log.read()) == ["1", "2", "3"]


def test_one_process_opens_a_log_once(log: Log, path: Path) -> None:
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        Log(path)
    assert log.append("task/a", done("x"), actor="me").first == 1


def test_a_closed_log_refuses_everything(log: Log, path: Path) -> None:
    log.append("task/a", done("x"), actor="me")
    reader = log.read()
    log.close()
    log.close()
    for call in (
        log.head,
        lambda: log.append("task/a", done("x"), actor="me"),
        lambda: next(reader),
        lambda: next(log.read_stream("task/a")),
        lambda: log.snapshot(path.with_name("copy")),
    ):
        with pytest.raises(LogUnavailable, match="it was closed"):
            call()
    assert not path.with_name("copy").exists()


def test_a_snapshot_is_a_whole_log_of_the_moment(log: Log, path: Path) -> None:
    log.append("task/a", done("1", "2"), actor="me", key="k")
    log.snapshot(path.with_name("copy"))
    log.append("task/a", done("3"), actor="me")
    with contextlib.closing(Log(path.with_name("copy"))) as copy:
        assert copy.log_id == log.log_id
        assert words(copy.read()) == ["1", "2"]
        assert copy.append("task/a", done("1", "2"), actor="me", key="k").repeated
        copy.append("task/a", done("other"), actor="me", expected=2)
    assert words(log.read()) == ["1", "2", "3"]


def test_listeners_are_called_after_each_commit_until_they_leave(log: Log) -> None:
    heads: list[int] = []
    leave = log.listen(lambda: heads.append(log.head().position))
    log.append("task/a", done("1", "2"), actor="me", key="k")
    log.append("task/a", done("1", "2"), actor="me", key="k")
    with pytest.raises(RevisionConflict):
        log.append("task/a", done("3"), actor="me", expected=0)
    log.append("task/a", done("3"), actor="me")
    leave()
    log.append("task/a", done("4"), actor="me")
    assert heads == [2, 3]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12), st.integers(-1, 40))
def test_a_time_is_the_last_position_that_was_stored_by_it(frames: list[tuple[int, int]], asked: int) -> None:
    now = [0]
    with tempfile.TemporaryDirectory() as folder:
        log: LmdbLog[None] = LmdbLog(Path(folder) / "log", clock=lambda: now[0])
        with contextlib.closing(log):
            for later, count in frames:
                now[0] += later
                log.append("task/a", done(*map(str, range(count))), actor="me")
            stored = [record.position for record in log.read() if record.time_ns <= asked]
            assert log.position_as_of(asked) == max(stored, default=0)
