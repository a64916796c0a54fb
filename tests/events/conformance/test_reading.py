"""Points 9, 12 and 15: ranges, streams, listeners and damage."""

from __future__ import annotations

import itertools

import pytest

from sandkeep.events import BadInput, LogDamaged, RevisionConflict

from ..support import done, words
from .subject import Capability, Subject, append, needs


def test_streams_whose_names_begin_alike_are_apart(subject: Subject) -> None:
    log = subject.log
    for stream in ("task/a", "task/ab", "keep", "task/a.b", "task/a"):
        append(log, stream, stream=stream)
    for stream, revision in (("keep", 2), ("task/a", 3), ("task/ab", 2), ("task/a.b", 2)):
        assert log.append(stream, done("x"), actor="me").revision == revision
    assert [r.position for r in log.read_stream("task/a")] == [1, 5, 7]
    assert list(log.read_stream("task/b")) == []


def test_any_range_is_read_across_appends(subject: Subject) -> None:
    log = subject.log
    for count in (1, 3, 2):
        append(log, *"x" * count)
    for after, until in itertools.product([*range(8), 2**62], [None, *range(8)]):
        last = 6 if until is None else min(until, 6)
        assert [r.position for r in log.read(after, until=until)] == list(range(after + 1, last + 1))
        assert [r.revision for r in log.read_stream("task/a", after)] == list(range(after + 1, 7))


def test_a_place_that_cannot_be_is_refused_before_anything_is_read(subject: Subject) -> None:
    append(subject.log, "x")
    for after in (-1, -(2**70), 2**64):
        with subject.refused(BadInput, f"{after} is no place to read from"):
            subject.log.read(after)
        with subject.refused(BadInput, f"{after} is no place to read from"):
            subject.log.read_stream("task/a", after)


def test_more_than_a_page_is_read(subject: Subject) -> None:
    big = "x" * 60_000
    for number in range(300):
        append(subject.log, f"{number}", *([big] if number < 40 else []), stream=f"task/{number % 2}")
    subject.whole(340)


def test_a_reader_sees_what_is_appended_before_it_ends(subject: Subject) -> None:
    append(subject.log, "1")
    reader, mine = subject.log.read(), subject.log.read_stream("task/a")
    assert next(reader).position == next(mine).position == 1
    append(subject.log, "2")
    assert [r.position for r in reader] == [r.position for r in mine] == [2]


def test_listeners_are_called_after_each_commit_until_they_leave(subject: Subject) -> None:
    log = subject.log
    heads: list[int] = []
    leave = log.listen(lambda: heads.append(log.head().position))
    log.append("task/a", done("1", "2"), actor="me", key="k")
    log.append("task/a", done("1", "2"), actor="me", key="k")
    with pytest.raises(RevisionConflict):
        log.append("task/a", done("3"), actor="me", expected=0)
    append(log, "3")
    leave()
    append(log, "4")
    assert heads == [2, 3]


@needs(Capability.CLOCK)
def test_a_time_is_the_last_position_that_was_stored_by_it(subject: Subject) -> None:
    log = subject.log
    assert log.position_as_of(2**62) == 0
    for subject.now, count in ((100, 1), (100, 3), (107, 2), (90, 1), (200, 4)):
        append(log, *"x" * count)
    for asked in (-1, 0, 99, 100, 101, 106, 107, 108, 199, 200, 2**62):
        stored = [record.position for record in log.read() if record.time_ns <= asked]
        assert log.position_as_of(asked) == max(stored, default=0)


@needs(Capability.DAMAGE)
def test_one_changed_bit_is_found_and_what_is_whole_is_still_read(subject: Subject) -> None:
    for number in range(1, 6):
        append(subject.log, f"needle {number}")
    subject.close()
    subject.backend.damage(subject.folder, b"needle 3")
    with pytest.raises(LogDamaged, match="position 3"):
        list(subject.log.read())
    with pytest.raises(LogDamaged, match="position 3"):
        list(subject.log.read_stream("task/a"))
    assert words(subject.log.read(until=2)) == ["needle 1", "needle 2"]
