"""What only the log in LMDB does; what every log must do is in `conformance`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from sandkeep.events import EventLog, Head, LmdbLog, LogUnavailable, codec

from .support import done, words

Log = LmdbLog[None]


def test_the_log_keeps_the_protocol(log: Log) -> None:
    kept: EventLog[None] = log
    assert kept.head() == Head(0, codec.GENESIS, 0)


def test_one_process_opens_a_log_once(log: Log, path: Path) -> None:
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        Log(path)
    assert log.append("task/a", done("x"), actor="me").first == 1


def test_a_closed_log_is_not_copied(log: Log, path: Path) -> None:
    log.close()
    with pytest.raises(LogUnavailable, match="it was closed"):
        log.snapshot(path.with_name("copy"))
    assert not path.with_name("copy").exists()


def test_without_a_follower_nothing_can_be_decided(log: Log) -> None:
    with pytest.raises(LogUnavailable, match="without projections"):
        log.decide("task/a", lambda view: done("x"), actor="me")
    assert log.head().position == 0


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
