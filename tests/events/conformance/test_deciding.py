"""Point 8: deciders see the follower's state at the head, and either all or nothing happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from sandkeep.events import BadInput, Event, KeyReused, LimitReached, Record, StaleFence
from sandkeep.events.log import MAX_EVENTS

from ..support import done, finish, go, words
from .subject import Capability, Subject, append, needs


class Refused(Exception):
    pass


def refuse(view: Sequence[Record]) -> list[Event]:
    raise Refused


def never(view: Sequence[Record]) -> list[Event]:
    raise AssertionError("the decider ran")


def counting(count: int = 1) -> Callable[[Sequence[Record]], list[Event]]:
    """A decider whose events tell how much it saw."""
    return lambda view: done(*[f"saw {len(view)}"] * count)


def test_a_decider_sees_everything_up_to_the_head(subject: Subject) -> None:
    log = subject.log
    append(log, "1", "2", stream="task/b")
    receipt = log.decide("task/a", counting(2), actor="me")
    assert (receipt.first, receipt.last, receipt.revision, receipt.repeated) == (3, 4, 2, False)
    log.decide("task/a", counting(), actor="me")
    assert words(log.read()) == ["1", "2", "saw 2", "saw 2", "saw 4"]
    assert words(subject.replica.records) == words(log.read())


@needs(Capability.PROCESSES)
def test_a_decider_sees_what_another_process_appended(subject: Subject) -> None:
    subject.log.decide("task/a", counting(), actor="me")
    with subject.elsewhere("append", 3) as process:
        go(process)
        finish(process)
    subject.log.decide("task/a", counting(), actor="me")
    assert words(subject.log.read()) == ["saw 0", "0", "1", "2", "saw 4"]


def test_a_refusal_stores_nothing_and_is_raised_as_it_is(subject: Subject) -> None:
    log = subject.log
    append(log, "1")
    with pytest.raises(Refused):
        log.decide("task/a", refuse, actor="me", key="k")
    assert (log.head().position, subject.replica.aborts, words(subject.replica.records)) == (1, 0, ["1"])
    assert log.decide("task/a", counting(), actor="me", key="k").repeated is False


def test_events_that_cannot_be_stored_are_refused_whole(subject: Subject) -> None:
    log = subject.log
    with subject.refused(BadInput):
        log.decide("task/a", lambda view: done("good", "\udcff"), actor="me")
    with subject.refused(BadInput):
        log.decide("task/a", counting(), actor="me", cause=1)
    with subject.refused(LimitReached, "as a blob"):
        log.decide("task/a", lambda view: done("good", "x" * 70_000), actor="me", key="k")
    with subject.refused(LimitReached, "split them"):
        log.decide("task/a", lambda view: done(*"x" * (MAX_EVENTS + 1)), actor="me", key="k")
    assert (subject.replica.aborts, subject.replica.records) == (0, [])
    assert log.decide("task/a", counting(), actor="me", key="k").repeated is False


def test_nothing_decided_is_an_empty_receipt(subject: Subject) -> None:
    log = subject.log
    appended = log.append("task/a", done("1", "2"), actor="me")
    receipt = log.decide("task/a", lambda view: [], actor="me", key="k")
    assert (receipt.first, receipt.last, receipt.revision, receipt.time_ns) == (3, 2, 2, appended.time_ns)
    assert (log.head().position, words(subject.replica.records)) == (2, ["1", "2"])
    assert log.decide("task/a", counting(), actor="me", key="k").first == 3


def test_a_repeated_key_does_not_run_the_decider(subject: Subject) -> None:
    first = subject.log.decide("task/a", counting(2), actor="me", key="k")
    assert subject.log.decide("task/a", never, actor="me", key="k") == msgspec.structs.replace(first, repeated=True)
    assert subject.log.head().position == 2


def test_a_key_is_the_same_key_for_append_and_decide(subject: Subject) -> None:
    decided = subject.log.decide("task/a", counting(), actor="me", key="k")
    assert subject.log.append("task/a", done("saw 0"), actor="me", key="k").first == decided.first
    with subject.refused(KeyReused):
        subject.log.append("task/a", done("other"), actor="me", key="k")


def test_a_decision_is_fenced_and_caused_like_an_append(subject: Subject) -> None:
    log = subject.log
    append(log, "1", "2")
    log.decide("task/a", counting(), actor="me", fence=2, cause=1)
    with subject.refused(StaleFence):
        log.decide("task/a", counting(), actor="me", fence=1)
    assert [r.cause for r in log.read()] == [None, None, 1]
    assert (words(subject.replica.records), subject.replica.aborts) == (["1", "2", "saw 2"], 0)


def test_bad_names_are_refused_before_the_decider_runs(subject: Subject) -> None:
    for stream, actor, key in (("Task", "me", None), ("task", "", None), ("task", "me", "")):
        with subject.refused(BadInput):
            subject.log.decide(stream, never, actor=actor, key=key)


@needs(Capability.REOPENED)
def test_a_new_follower_catches_up_with_an_old_log(subject: Subject) -> None:
    append(subject.log, "1", "2")
    append(subject.log, "3")
    subject.close()
    subject.log.decide("task/a", counting(), actor="me")
    assert words(subject.log.read()) == ["1", "2", "3", "saw 3"]
