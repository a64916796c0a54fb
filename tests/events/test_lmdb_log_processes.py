"""Threads, processes, and processes that die."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from sandkeep.events import Bus, LimitReached, LmdbLog, LogUnavailable, Record, codec, lmdb_layout
from sandkeep.events.verify import verify

from .support import done, finish, go, raw, words, worker

Log = LmdbLog[None]


def check_whole(log: LmdbLog[None] | LmdbLog[list[Record]], path: Path, events: int) -> None:
    """Positions and revisions are dense, times do not decrease, and every frame follows the one before it."""
    records = list(log.read())
    assert [r.position for r in records] == list(range(1, events + 1))
    for stream in {r.stream for r in records}:
        revisions = [r.revision for r in records if r.stream == stream]
        assert revisions == list(range(1, len(revisions) + 1)) == [r.revision for r in log.read_stream(stream)]
    assert [r.time_ns for r in records] == sorted(r.time_ns for r in records)
    log_id = log.log_id
    log.close()
    with raw(path, "frames") as txn:
        checksum = codec.GENESIS
        for key, value in txn.cursor():
            frame = codec.decode_frame(value, log_id, int.from_bytes(key, "big"))
            assert frame.previous == checksum
            checksum = frame.checksum
    assert verify(path).events == events


def test_a_write_that_the_disk_refuses_closes_the_log_and_loses_nothing(path: Path) -> None:
    with worker("full-disk", path, "x") as process:
        go(process)
        *acknowledged, refused, closed = finish(process)
    assert (refused, closed) == ("refused", "closed")
    with contextlib.closing(Log(path)) as log:
        assert [str(r.position) for r in log.read()] == acknowledged
        log.append("task/shared", done("after"), actor="me")
        check_whole(log, path, len(acknowledged) + 1)


def test_a_copy_that_the_disk_refuses_leaves_the_log_as_it_is(path: Path) -> None:
    with worker("full-disk-snapshot", path, "x") as process:
        go(process)
        assert finish(process)[-1] == "not copied 50"


def test_a_full_table_of_readers_refuses_the_read_and_keeps_the_log(log: Log) -> None:
    log.append("task/a", done("x"), actor="me")
    with contextlib.ExitStack() as stack:
        for _ in range(lmdb_layout.MAX_READERS):
            stack.enter_context(log._layout.env.begin())
        with pytest.raises(LogUnavailable, match="cannot be read"):
            log.head()
    assert log.head().position == 1


@pytest.fixture
def few_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_layout, "MAX_READERS", 8)


def killed_reader(path: Path, readers: int) -> None:
    with worker("hold-readers", path, readers) as process:
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.usefixtures("few_readers")
def test_a_table_full_of_dead_readers_is_cleared(path: Path) -> None:
    with contextlib.closing(Log(path)) as log:
        killed_reader(path, 7)
        assert log.head().position == 0
        killed_reader(path, 5)
        with contextlib.ExitStack() as stack:
            for _ in range(6):
                stack.enter_context(log._layout.reading())
            assert len(log._layout.env.readers().splitlines()) <= 8


def test_dead_readers_are_cleared_at_opening_and_now_and_then(log: Log, path: Path) -> None:
    def listed() -> int:
        return len(log._layout.env.readers().splitlines())

    before = listed()
    killed_reader(path, 3)
    assert listed() == before + 3
    log.append("task/a", done("x"), actor="me")
    assert listed() == before + 3
    log._layout._check_at = 0.0
    log.append("task/a", done("x"), actor="me")
    assert listed() == before
    killed_reader(path, 3)
    with worker("append", path, 0) as process:
        go(process)
        finish(process)
    assert listed() == before


def test_a_forked_child_is_refused_and_may_open_the_log_anew(log: Log, path: Path, tmp_path: Path) -> None:
    log.append("task/a", done("x"), actor="me")
    bus = Bus(log)
    bus.live().subscribe(lambda record: None)
    report = tmp_path / "report"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            said = []
            for use in (log.head, lambda: log.append("task/a", done("y"), actor="me"), lambda: list(log.read())):
                try:
                    use()
                except LogUnavailable as error:
                    said.append(str(error))
            bus.close()
            log.close()
            again = Log(path)
            again.append("task/a", done("child"), actor="me")
            again.close()
            report.write_text("\n".join(said))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (
        report.read_text().splitlines()
        == ["the log was opened before a fork; close it in the child, and open the keep again there"] * 3
    )
    log.append("task/a", done("parent"), actor="me")
    assert words(log.read()) == ["x", "child", "parent"]
    bus.close()


def fill(log: Log) -> None:
    for number in range(1000):
        log.append("task/a", done("x" * 4000), actor="me", key=f"{number}")


def test_a_full_map_grows_without_losing_an_append(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_layout, "MAP_BYTES", 512 << 10)
    with contextlib.closing(Log(path)) as log:
        fill(log)
        assert log.append("task/a", done("after"), actor="me", expected=1000).repeated is False
        assert log._layout.env.info()["map_size"] > 4_000_000
        check_whole(log, path, 1001)


def test_another_process_follows_a_map_that_has_grown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_layout, "MAP_BYTES", 512 << 10)
    with contextlib.closing(Log(path)) as log:
        with worker("append", path, 2000) as process:
            go(process)
            finish(process)
        assert log.head().position == 2000 == len(list(log.read()))
        with worker("append", path, 2000) as process:
            go(process)
            finish(process)
        assert log.append("task/a", done("after"), actor="me").last == 4001


def test_a_map_grows_while_others_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_layout, "MAP_BYTES", 512 << 10)
    with contextlib.closing(Log(path)) as log:
        done_writing = threading.Event()
        counts: list[int] = []

        def read() -> None:
            # Two busy readers would keep the interpreter from the writer for most of the time.
            while not done_writing.wait(0.005):
                counts.append(sum(1 for _ in log.read(max(0, log.head().position - 100))))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        fill(log)
        done_writing.set()
        for reader in readers:
            reader.join()
        assert counts
        assert max(counts) >= 100
        assert log.head().position == 1000


def test_the_largest_map_refuses_the_append_and_keeps_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_layout, "MAP_BYTES", 512 << 10)
    monkeypatch.setattr(lmdb_layout, "MAX_MAP_BYTES", 512 << 10)
    with contextlib.closing(Log(path)) as log:
        with pytest.raises(LimitReached, match="the log has reached"):
            fill(log)
        count = log.head().position
        assert count == len(list(log.read())) > 10
        with pytest.raises(LimitReached):
            log.append("task/a", done("x" * 60_000), actor="me")
    monkeypatch.undo()
    with contextlib.closing(Log(path)) as log:
        assert log.append("task/a", done("after"), actor="me", expected=count).repeated is False
        check_whole(log, path, count + 1)
