"""Deciders see the follower's state at the head, and either all or nothing happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import BadInput, Event, KeyReused, LmdbLog, LogUnavailable, Record, StaleFence

from .support import Replica, done, finish, go, words, worker

Log = LmdbLog[list[Record]]


class Refused(Exception):
    pass


def refuse(view: Sequence[Record]) -> list[Event]:
    raise Refused


def never(view: Sequence[Record]) -> list[Event]:
    raise AssertionError("the decider ran")


def counting(count: int = 1) -> Callable[[Sequence[Record]], list[Event]]:
    """A decider whose events tell how much it saw."""
    return lambda view: done(*[f"saw {len(view)}"] * count)


def test_a_decider_sees_everything_up_to_the_head(deciding: Log, replica: Replica) -> None:
    deciding.append("task/b", done("1", "2"), actor="me")
    receipt = deciding.decide("task/a", counting(2), actor="me")
    assert (receipt.first, receipt.last, receipt.revision, receipt.repeated) == (3, 4, 2, False)
    deciding.decide("task/a", counting(), actor="me")
    assert words(deciding.read()) == ["1", "2", "saw 2", "saw 2", "saw 4"]
    assert words(replica.records) == words(deciding.read())


def test_a_decider_sees_what_another_process_appended(deciding: Log, path: Path) -> None:
    deciding.decide("task/a", counting(), actor="me")
    with worker("append", path, 3) as process:
        go(process)
        finish(process)
    deciding.decide("task/a", counting(), actor="me")
    assert words(deciding.read()) == ["saw 0", "0", "1", "2", "saw 4"]


def test_a_refusal_stores_nothing_and_is_raised_as_it_is(deciding: Log, replica: Replica) -> None:
    deciding.append("task/a", done("1"), actor="me")
    with pytest.raises(Refused):
        deciding.decide("task/a", refuse, actor="me", key="k")
    assert (deciding.head().position, replica.aborts, words(replica.records)) == (1, 0, ["1"])
    assert deciding.decide("task/a", counting(), actor="me", key="k").repeated is False


def test_an_event_that_cannot_be_stored_ends_the_session(deciding: Log, replica: Replica) -> None:
    with pytest.raises(BadInput):
        deciding.decide("task/a", lambda view: done("\udcff"), actor="me")
    with pytest.raises(BadInput):
        deciding.decide("task/a", counting(), actor="me", cause=1)
    assert (deciding.head().position, replica.aborts, replica.records) == (0, 0, [])


def test_nothing_decided_is_an_empty_receipt(deciding: Log, replica: Replica) -> None:
    appended = deciding.append("task/a", done("1", "2"), actor="me")
    receipt = deciding.decide("task/a", lambda view: [], actor="me", key="k")
    assert (receipt.first, receipt.last, receipt.revision, receipt.time_ns) == (3, 2, 2, appended.time_ns)
    assert (deciding.head().position, words(replica.records)) == (2, ["1", "2"])
    assert deciding.decide("task/a", counting(), actor="me", key="k").first == 3


def test_a_repeated_key_does_not_run_the_decider(deciding: Log) -> None:
    first = deciding.decide("task/a", counting(2), actor="me", key="k")
    assert deciding.decide("task/a", never, actor="me", key="k") == msgspec.structs.replace(first, repeated=True)
    assert deciding.head().position == 2


def test_a_key_is_the_same_key_for_append_and_decide(deciding: Log) -> None:
    decided = deciding.decide("task/a", counting(), actor="me", key="k")
    assert deciding.append("task/a", done("saw 0"), actor="me", key="k").first == decided.first
    with pytest.raises(KeyReused):
        deciding.append("task/a", done("other"), actor="me", key="k")
    assert deciding.head().position == 1


def test_a_decision_is_fenced_and_caused_like_an_append(deciding: Log, replica: Replica) -> None:
    deciding.append("task/a", done("1", "2"), actor="me", fence=None)
    deciding.decide("task/a", counting(), actor="me", fence=2, cause=1)
    with pytest.raises(StaleFence):
        deciding.decide("task/a", counting(), actor="me", fence=1)
    assert [r.cause for r in deciding.read()] == [None, None, 1]
    assert (words(replica.records), replica.aborts) == (["1", "2", "saw 2"], 0)


def test_without_a_follower_nothing_can_be_decided(log: LmdbLog[None]) -> None:
    with pytest.raises(LogUnavailable, match="without projections"):
        log.decide("task/a", lambda view: done("x"), actor="me")
    assert log.head().position == 0


def test_bad_names_are_refused_before_the_decider_runs(deciding: Log) -> None:
    for stream, actor, key in (("Task", "me", None), ("task", "", None), ("task", "me", "")):
        with pytest.raises(BadInput):
            deciding.decide(stream, never, actor=actor, key=key)
    assert deciding.head().position == 0


def test_a_new_follower_catches_up_with_an_old_log(path: Path) -> None:
    with contextlib.closing(LmdbLog[None](path)) as log:
        log.append("task/a", done("1", "2"), actor="me")
        log.append("task/a", done("3"), actor="me")
    with contextlib.closing(LmdbLog(path, follower=Replica())) as again:
        again.decide("task/a", counting(), actor="me")
        assert words(again.read()) == ["1", "2", "3", "saw 3"]
