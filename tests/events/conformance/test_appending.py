"""Points 1 to 7 and 10: what an append stores, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sandkeep.events import (
    BadInput,
    Event,
    KeyReused,
    LimitReached,
    Receipt,
    RevisionConflict,
    StaleFence,
    UnknownEvent,
    schema,
    upcast,
)
from sandkeep.events import catalogue as ev
from sandkeep.events.log import MAX_EVENT_BYTES, MAX_EVENTS

from ..support import done, words
from .subject import Capability, Subject, append, needs


def test_a_new_log_is_empty(subject: Subject) -> None:
    log = subject.log
    assert (log.head().position, log.head().time_ns, len(log.log_id)) == (0, 0, 16)
    assert list(log.read()) == list(log.read_stream("task/a")) == []
    subject.whole(0)


def test_positions_run_over_the_log_and_revisions_over_each_stream(subject: Subject) -> None:
    log = subject.log
    assert (append(log, "1", "2"), log.head().position) == (2, 2)
    append(log, "3", stream="task/b")
    receipt = log.append("task/a", done("4", "5"), actor="me")
    assert (receipt.first, receipt.last, receipt.revision, receipt.repeated) == (4, 5, 4, False)
    found = [(r.position, r.stream, r.revision) for r in log.read()]
    assert found == [(1, "task/a", 1), (2, "task/a", 2), (3, "task/b", 1), (4, "task/a", 3), (5, "task/a", 4)]
    subject.whole(5)


def test_a_record_keeps_its_whole_envelope(subject: Subject) -> None:
    log = subject.log
    first = log.append("task/a", done("x"), actor="Ágnes", key="k")
    log.append("keep", done("y"), actor="me", cause=first.first)
    one, two = log.read()
    assert (one.actor, one.key, one.cause, one.type, one.version) == ("Ágnes", "k", None, "TaskCompleted", 1)
    assert (one.time_ns, one.event, two.cause, two.key) == (first.time_ns, done("x")[0], 1, None)


def test_an_expected_revision_must_hold(subject: Subject) -> None:
    log = subject.log
    assert log.append("task/a", done("1", "2"), actor="me", expected=0).revision == 2
    assert log.append("task/a", done("3"), actor="me", expected=2).revision == 3
    for expected in (-1, 0, 2, 4, 2**70):  # one beyond the head is as wrong as one behind it
        with subject.refused(RevisionConflict, f"at revision 3, not {expected}"):
            log.append("task/a", done("4"), actor="me", expected=expected, key="k", fence=3)
    with subject.refused(RevisionConflict):
        log.append("task/new", done("4"), actor="me", expected=3)
    assert log.append("task/a", done("4"), actor="me", expected=3, key="k", fence=1).repeated is False


def test_a_repeated_key_returns_the_first_receipt_and_stores_nothing(subject: Subject) -> None:
    log = subject.log
    first = log.append("task/a", done("1", "2"), actor="me", expected=0, key="k")
    append(log, "3")
    again = log.append("task/a", done("1", "2"), actor="you", expected=0, key="k")
    assert again == msgspec.structs.replace(first, repeated=True)
    subject.whole(3)


def test_a_key_belongs_to_its_stream(subject: Subject) -> None:
    log = subject.log
    log.append("task/a", done("1"), actor="me", key="k")
    assert log.append("task/b", done("1"), actor="me", key="k") == Receipt(2, 2, 1, log.head().time_ns)


def test_a_key_used_for_other_events_is_refused(subject: Subject) -> None:
    log = subject.log
    first = log.append("task/a", done("1"), actor="me", key="k")
    for other in (done("2"), done("1", "1"), [ev.TaskFailed(reason="1")]):
        with subject.refused(KeyReused, "'k' on task/a was used for other events at position 1"):
            log.append("task/a", other, actor="me", key="k")
    assert log.append("task/a", done("1"), actor="me", key="k") == msgspec.structs.replace(first, repeated=True)


def test_a_token_older_than_one_seen_is_stale(subject: Subject) -> None:
    log = subject.log
    append(log, "1", "2", "3")
    for text, fence in (("4", 2), ("5", 2), ("6", 3)):
        log.append("task/a", done(text), actor="me", fence=fence)
    with subject.refused(StaleFence, "token 2 on task/a is stale: 3 was granted since"):
        log.append("task/a", done("7"), actor="me", fence=2, key="k")
    assert log.append("task/a", done("7"), actor="me", key="k").repeated is False
    log.append("task/b", done("8"), actor="me", fence=2)
    assert words(log.read()) == list("12345678")


def test_a_refused_append_does_not_raise_the_fence(subject: Subject) -> None:
    log = subject.log
    append(log, "1", "2")
    with subject.refused(BadInput):
        log.append("task/a", done("3"), actor="me", fence=2, cause=9)
    assert log.append("task/a", done("3"), actor="me", fence=1).first == 3


def test_tokens_and_causes_name_a_position_of_the_log(subject: Subject) -> None:
    log = subject.log
    append(log, "1", "2")
    for token in (0, -1, 3, 2**70):
        with subject.refused(BadInput, f"{token} names no position of this log"):
            log.append("task/a", done("3"), actor="me", fence=token)
        with subject.refused(BadInput, f"{token} names no position of this log"):
            log.append("task/a", done("3"), actor="me", cause=token)


@needs(Capability.CLOCK)
def test_time_never_decreases_while_the_clock_does(subject: Subject) -> None:
    times = []
    for subject.now in (50, 10, 70, 60):
        times.append(subject.log.append("task/a", done("x"), actor="me").time_ns)
    assert times == [50, 50, 70, 70] == [r.time_ns for r in subject.log.read()]
    subject.close()
    subject.now = 5
    assert subject.log.append("task/a", done("x"), actor="me").time_ns == 70
    subject.whole(5)


MALFORMED = [
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
    "task/" + "a" * 129,
]
UNKNOWN = ["task", "keep/a", "tasks/a", "sandbox/a", "a" * 17, "a" * 100_000]


def test_a_stream_name_that_is_malformed_or_unknown_is_refused(subject: Subject) -> None:
    for stream in MALFORMED + UNKNOWN:
        with subject.refused(BadInput, "is no stream name"):
            subject.log.append(stream, done("x"), actor="me")
        with subject.refused(BadInput, "is no stream name"):
            subject.log.read_stream(stream)


def test_the_longest_names_are_taken(subject: Subject) -> None:
    log = subject.log
    stream = "image/" + "B" * 128
    assert log.append(stream, done("x"), actor="ä" * 200, key="k" * 200, expected=0).revision == 1
    assert log.append(stream, done("x"), actor="ä" * 200, key="k" * 200).repeated
    assert [r.stream for r in log.read_stream(stream)] == [stream]


def test_a_bad_actor_or_key_is_refused(subject: Subject) -> None:
    for actor in ("", "a" * 201, "a\nb", "\udcff"):
        with subject.refused(BadInput, "actor"):
            subject.log.append("task/a", done("x"), actor=actor)
    for key in ("", "k" * 201, "ä", "\udcff"):
        with subject.refused(BadInput, "idempotency key"):
            subject.log.append("task/a", done("x"), actor="me", key=key)


class Loose(Event, frozen=True):
    """Not registered."""


NO_TEXTS: tuple[Any, ...] = (3, object())
UNREADABLE: list[Event] = [
    ev.TaskCompleted(summary="\udcff"),
    *(ev.TaskCompleted(summary=each) for each in NO_TEXTS),
    ev.KeepCreated(format=2**70, public_key=b""),
    UnknownEvent("Later", 1, b"\xc1"),
    UnknownEvent("Later", 1, b"\x80\x80"),
    UnknownEvent("TaskCompleted", 1, b"\x80"),
    Loose(),
]


def test_an_event_that_could_not_be_read_back_is_refused_with_all_beside_it(subject: Subject) -> None:
    for number, event in enumerate(UNREADABLE):
        with subject.refused(BadInput):
            subject.log.append("task/a", [*done("good"), event], actor="me", key=f"{number}")
        assert not subject.log.append("task/b", done("good"), actor="me", key=f"{number}").repeated


def test_limits_are_exact(subject: Subject) -> None:
    log = subject.log
    with subject.refused(BadInput, "at least one event"):
        log.append("task/a", [], actor="me")
    with subject.refused(LimitReached, "split them"):
        log.append("task/a", done(*"x" * (MAX_EVENTS + 1)), actor="me", key="k")
    room = MAX_EVENT_BYTES - len(msgspec.msgpack.encode({"summary": "x" * 60_000})) + 60_000
    with subject.refused(LimitReached, f"more than {MAX_EVENT_BYTES}; store its content as a blob"):
        log.append("task/a", done("good", "x" * (room + 1)), actor="me", key="k")
    assert log.append("task/a", done("x" * room), actor="me", key="k").repeated is False
    append(log, *"x" * MAX_EVENTS)
    subject.whole(MAX_EVENTS + 1)


def test_an_event_of_a_later_version_keeps_its_bytes(subject: Subject) -> None:
    bodies = [msgspec.msgpack.encode({"x": [1]}), b"\x81\xa1x\xcd\x00\x01"]  # the second is not as msgspec writes it
    later = [UnknownEvent("Later", 7, body) for body in bodies]
    subject.log.append("task/a", later, actor="me")
    assert [r.event for r in subject.log.read()] == later
    assert [bytes(r.data) for r in subject.log.read_stream("task/a")] == bodies


def test_an_old_event_is_read_as_the_present_one_and_its_bytes_stay(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in ("_decoders", "_names", "_upcasters"):
        monkeypatch.setattr(schema, registry, dict(getattr(schema, registry)))

    @upcast("TaskFailed", from_version=0)
    def rename(fields: dict[str, Any]) -> dict[str, Any]:
        return {"reason": fields["why"]}

    old = UnknownEvent("TaskFailed", 0, msgspec.msgpack.encode({"why": "tired"}))
    subject.log.append("task/a", [old], actor="me", key="k")
    (record,) = subject.log.read()
    assert record.event == ev.TaskFailed(reason="tired")
    assert (record.version, bytes(record.data)) == (0, old.data)
    assert subject.log.append("task/a", [old], actor="me", key="k").repeated
