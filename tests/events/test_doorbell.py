from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import Bus, LmdbLog, doorbell
from sandkeep.events.doorbell import Doorbell

from .support import done, go, wait_until, worker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "doorbells"


@pytest.fixture
def bell(folder: Path) -> Iterator[Doorbell]:
    with contextlib.closing(Doorbell(folder)) as bell:
        yield bell


@pytest.fixture
def other(folder: Path) -> Iterator[Doorbell]:
    """Stands for another process."""
    with contextlib.closing(Doorbell(folder)) as other:
        yield other


def plant(path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    planted = socket.socket(socket.AF_UNIX, kind)
    planted.bind(str(path))
    return planted


def test_a_ring_reaches_the_others_and_not_the_one_who_rings(bell: Doorbell, other: Doorbell) -> None:
    mine, theirs = threading.Event(), threading.Event()
    bell.listen(mine.set)
    other.listen(theirs.set)
    other.ring()
    assert mine.wait(5)
    assert not theirs.wait(0.05)


def test_a_socket_is_there_only_while_something_listens(bell: Doorbell, folder: Path) -> None:
    bell.ring()
    assert not folder.exists()
    ends = [bell.listen(lambda: None), bell.listen(lambda: None)]
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    ends[0]()
    assert len(list(folder.iterdir())) == 1
    ends[1]()
    ends[1]()
    assert list(folder.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "sandkeep-doorbell"]


def test_an_unchanged_folder_is_not_listed_again(
    bell: Doorbell, other: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()
    bell.listen(heard.set)
    time.sleep(0.1)
    other.ring()
    monkeypatch.setattr(os, "scandir", None)
    heard.clear()
    other.ring()
    assert heard.wait(5)


def test_a_listener_that_comes_within_one_tick_of_the_clock_is_rung(
    bell: Doorbell, other: Doorbell, folder: Path
) -> None:
    folder.mkdir()
    tick = time.time_ns()
    os.utime(folder, ns=(tick, tick))
    other.ring()
    heard = threading.Event()
    bell.listen(heard.set)
    os.utime(folder, ns=(tick, tick))
    other.ring()
    assert heard.wait(5)


def test_what_a_dead_process_left_is_removed_and_what_is_new_is_not(folder: Path, other: Doorbell) -> None:
    folder.mkdir()
    plant(folder / "new").close()
    plant(folder / "old").close()
    os.utime(folder / "old", (0, 0))
    other.ring()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_strange_files_do_no_harm_and_are_left_alone(bell: Doorbell, other: Doorbell, folder: Path) -> None:
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    outside = plant(folder.parent / "outside")
    (folder / "link").symlink_to(folder.parent / "outside")
    stream = plant(folder / "stream", socket.SOCK_STREAM)
    for path in folder.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    before = {path.name for path in folder.iterdir()}
    heard = threading.Event()
    bell.listen(heard.set)
    other.ring()
    assert heard.wait(5)
    assert before < {path.name for path in folder.iterdir()}
    outside.setblocking(False)
    with pytest.raises(BlockingIOError):
        outside.recv(1)
    outside.close()
    stream.close()


def test_no_more_than_so_many_are_rung(other: Doorbell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "MOST", 3)
    folder.mkdir()
    planted = [plant(folder / str(number)) for number in range(6)]
    other.ring()
    assert len(other._names) == 3
    for each in planted:
        each.close()


def test_a_full_buffer_does_not_block_the_one_who_rings(other: Doorbell, folder: Path) -> None:
    folder.mkdir()
    with plant(folder / "deaf"):
        begun = time.monotonic()
        for _ in range(5000):
            other.ring()
        assert time.monotonic() - begun < 5
        assert (folder / "deaf").exists()


def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 100] * 5)
    with contextlib.closing(Doorbell(deep)) as bell, contextlib.closing(Doorbell(deep)) as other:
        heard = threading.Event()
        bell.listen(heard.set)
        other.ring()
        assert heard.wait(5)


def test_where_no_socket_can_be_made_it_says_so_and_all_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with contextlib.closing(Doorbell(folder)) as bell:
            bell.listen(lambda: None)()
            bell.ring()
    assert caplog.text.count("are seen by polling") == 2


def test_a_socket_that_was_tidied_away_is_made_anew(
    bell: Doorbell, other: Doorbell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "_CHECK_SECONDS", 0.01)
    heard = threading.Event()
    bell.listen(heard.set)
    for path in folder.iterdir():
        path.unlink()
    assert heard.wait(5)  # it looks, since it may have missed something
    wait_until(lambda: len(list(folder.iterdir())) == 1)
    heard.clear()
    other.ring()
    assert heard.wait(5)


def test_a_commit_wakes_the_bus_of_another_process_long_before_it_polls(path: Path, folder: Path) -> None:
    with (
        contextlib.closing(LmdbLog[None](path, doorbells=folder)) as log,
        contextlib.closing(Bus(log, poll_seconds=60)) as bus,
        worker("append", path, 3, folder) as process,
    ):
        positions: list[int] = []
        subscription = bus.live().subscribe(lambda record: positions.append(record.position))
        go(process)
        wait_until(lambda: positions == [1, 2, 3])
        subscription.dispose()
        wait_until(lambda: list(folder.iterdir()) == [])


def test_a_killed_listener_leaves_nothing_that_hurts(path: Path, folder: Path) -> None:
    with worker("listen", path, 0, folder) as process:
        go(process)
        wait_until(lambda: folder.exists() and len(list(folder.iterdir())) == 1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (left,) = folder.iterdir()
    os.utime(left, (0, 0))
    with contextlib.closing(LmdbLog[None](path, doorbells=folder)) as log:
        log.append("task/a", done("x"), actor="me")
        assert list(folder.iterdir()) == []
        assert log.append("task/a", done("x"), actor="me").first == 2
