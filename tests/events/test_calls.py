"""Calls that may come twice: the keys that what they store is given, and how it is found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import LmdbLog, RevisionConflict, calls
from sandkeep.events import catalogue as ev

EVENT = ev.TaskCompleted("done")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LmdbLog[None]]:
    made: LmdbLog[None] = LmdbLog(tmp_path / "log")
    yield made
    made.close()


def keys(log: LmdbLog[None]) -> list[str | None]:
    return [record.key for record in log.read()]


def test_what_a_call_stores_has_keys_made_from_its_own(log: LmdbLog[None]) -> None:
    log.append("task/a", [EVENT], actor="x")
    with calls.call("one"):
        log.append("task/a", [EVENT], actor="x")
        log.append("task/b", [EVENT, EVENT], actor="x")
        log.append("task/a", [EVENT], actor="x", key="own")
        with calls.call("inner"):
            log.append("task/a", [EVENT], actor="x")
        log.append("task/a", [EVENT], actor="x")
    log.append("task/a", [EVENT], actor="x")
    assert keys(log) == [None, "one/1", "one/2", "one/2", "own", "inner/1", "one/3", None]
    assert [record.position for record in calls.made(log, "one", 0)] == [2, 3, 4, 7]
    assert [record.position for record in calls.made(log, "one", 3)] == [4, 7]
    assert calls.made(log, "on", 0) == []


def test_what_is_refused_uses_no_key(log: LmdbLog[None]) -> None:
    with calls.call("one"):
        with pytest.raises(RevisionConflict):
            log.append("task/a", [EVENT], actor="x", expected=7)
        log.append("task/a", [EVENT], actor="x")
    assert keys(log) == ["one/1"]


def test_a_call_is_a_thread_s_own(log: LmdbLog[None]) -> None:
    with calls.call("one"):
        other = threading.Thread(target=lambda: log.append("task/a", [EVENT], actor="x"))
        other.start()
        other.join()
    assert keys(log) == [None]
