"""Rebuilding: compared by digest, swapped in, followed by every other process."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import lmdb
import msgspec
import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import Rebuilt
from sandkeep.projections import store as store_module
from sandkeep.projections.registry import tasks

from ..events.support import finish, go, wait_until, worker
from .support import WORKER, Keep, created, generations, tamper, within
from .support import keep as opened


def test_a_right_state_is_rebuilt_to_itself_in_a_new_generation(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    keep.log.append("task/b", [created("b")], actor="me")
    before = generations(tmp_path)
    rebuilt = keep.store.rebuild()
    assert rebuilt == Rebuilt(2, keep.digest(), keep.check())
    assert rebuilt.same
    assert len(generations(tmp_path)) == 1
    assert generations(tmp_path) != before
    assert keep.create("c").last == 3
    keep.check()


def test_empty_projections_are_rebuilt_too(keep: Keep) -> None:
    rebuilt = keep.store.rebuild()
    assert (rebuilt.position, rebuilt.same, rebuilt.after) == (0, True, keep.check())


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"registry/task/z", b"?"), (b"registry/bits/state/created\0" + bytes(4), b"\0\5")],
    ids=["task", "index"],
)
def test_a_state_that_was_tampered_with_is_found_and_put_right(tmp_path: Path, key: bytes, value: bytes) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        right = keep.check()
    tamper(tmp_path, key, value)
    with opened(tmp_path) as keep:
        wrong = keep.digest()
        rebuilt = keep.store.rebuild()
        assert (rebuilt.before, rebuilt.after, rebuilt.same) == (wrong, right, False)
        assert wrong != right == keep.check()
        assert keep.store.rebuild().same


def test_a_state_without_a_predecessor_is_right() -> None:
    assert Rebuilt(1, None, "a").same
    assert not Rebuilt(1, "b", "a").same


def test_progress_is_told(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BATCH", 1024)
    events = [ev.TaskCompleted("x")] * 1000
    for _ in range(3):
        keep.log.append("task/a", events, actor="me")
    told: list[int] = []
    assert keep.store.rebuild(told.append).position == 3000
    assert told == [1024, 2048, 3000]


def test_a_reader_survives_a_rebuild_in_its_process(keep: Keep) -> None:
    keep.create("a")
    reading, rebuilt, found = threading.Event(), threading.Event(), list[str]()

    def read() -> None:
        with keep.store.reading() as state:
            reading.set()
            assert rebuilt.wait(10)
            found.extend(task.id for task in tasks(state))

    wait = within(30, read)
    assert reading.wait(10)
    assert keep.store.rebuild().same
    keep.create("b")
    rebuilt.set()
    wait()
    assert found == ["a"]
    keep.check()


def test_readers_and_deciders_go_on_while_this_process_rebuilds(keep: Keep) -> None:
    ended = threading.Event()
    last: list[int] = []

    def decide() -> None:
        number = 0
        while not ended.is_set():
            last.append(keep.create(f"t{number}").last)
            assert keep.find(f"t{number}") is not None
            number += 1

    wait = within(30, decide)
    rebuilds = []
    try:
        for _ in range(5):
            seen = len(last)
            wait_until(lambda seen=seen: len(last) > seen + 3)  # type: ignore[misc]
            rebuilds.append(keep.store.rebuild())
    finally:
        ended.set()
        wait()
    assert [rebuilt.same for rebuilt in rebuilds] == [True] * 5
    assert last == list(range(1, len(last) + 1))
    keep.check()


def test_rebuilding_while_another_process_decides(keep: Keep, tmp_path: Path) -> None:
    with worker("decide", tmp_path, 100, script=WORKER) as process:
        go(process)
        rebuilds = 0
        while process.poll() is None:
            assert keep.store.rebuild().same
            rebuilds += 1
        assert finish(process) == [str(position) for position in range(1, 101)]
    assert rebuilds > 0
    assert keep.find("w99") is not None
    keep.check()


def test_another_process_follows_the_swap(keep: Keep, tmp_path: Path) -> None:
    with worker("decide", tmp_path, 3, script=WORKER) as process:
        assert keep.store.rebuild().same
        go(process)
        assert finish(process) == ["1", "2", "3"]
    assert len(generations(tmp_path)) == 1
    keep.check()


def test_this_process_follows_the_swap_of_another(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    before = keep.digest()
    with worker("rebuild", tmp_path, 1, script=WORKER) as process:
        go(process)
        assert finish(process) == [f"True {before}"]
    assert keep.create("b").last == 2
    assert keep.find("a") is not None
    keep.check()


def test_a_rebuild_directly_after_that_of_another_process(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    with worker("rebuild", tmp_path, 1, script=WORKER) as process:
        go(process)
        finish(process)
    rebuilt: list[Rebuilt] = []
    within(20, lambda: rebuilt.append(keep.store.rebuild()))()
    assert (rebuilt[0].same, rebuilt[0].position) == (True, 1)
    keep.check()


def test_two_processes_and_two_threads_rebuild_at_once(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    with worker("rebuild", tmp_path, 10, script=WORKER) as process:
        go(process)
        waits = [within(30, lambda: [keep.store.rebuild().same or 1 / 0 for _ in range(5)]) for _ in range(2)]
        for wait in waits:
            wait()
        assert finish(process) == [f"True {keep.digest()}"] * 10
    assert len(generations(tmp_path)) == 1
    assert keep.create("b").last == 2
    keep.check()


def test_when_the_swapped_in_generation_is_gone_a_new_one_is_made(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    with worker("rebuild", tmp_path, 1, script=WORKER) as process:
        go(process)
        finish(process)
    (tmp_path / "projections" / "current").unlink()
    assert keep.create("b").last == 2
    assert len(generations(tmp_path)) == 1
    keep.check()


class Cut(Exception):
    pass


def cut_off(keep: Keep, at: int) -> None:
    """Rebuild until position `at` is reached, and no further."""

    def stop(position: int) -> None:
        if position >= at:
            raise Cut

    with pytest.raises(Cut):
        keep.store.rebuild(stop)


def told_by(keep: Keep) -> tuple[Rebuilt, list[int]]:
    told: list[int] = []
    return keep.store.rebuild(told.append), told


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilds that commit every ten records."""
    monkeypatch.setattr(store_module, "BATCH", 10)


@pytest.mark.usefixtures("batches")
def test_a_rebuild_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        for number in range(35):
            keep.create(f"t{number}")
        cut_off(keep, 20)
        assert len(generations(tmp_path)) == 2
        keep.create("later")
    with opened(tmp_path) as keep:
        assert len(generations(tmp_path)) == 2
        rebuilt, told = told_by(keep)
        assert (rebuilt.same, rebuilt.position, told) == (True, 36, [30, 36])
        assert len(generations(tmp_path)) == 1
        assert told_by(keep)[1] == [10, 20, 30, 36]
        keep.check()


@pytest.mark.usefixtures("batches")
def test_a_rebuild_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        for number in range(35):
            keep.create(f"t{number}")
        with worker("die-rebuilding", tmp_path, 20, script=WORKER) as process:
            go(process)
            assert process.wait(30) == -signal.SIGKILL
        rebuilt, told = told_by(keep)
        assert (rebuilt.same, told) == (True, [30, 35])
        keep.check()


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("how", ["other boot", "other log", "damaged", "wrong", "ahead"])
def test_what_was_begun_is_not_used_if_it_cannot_be_right(tmp_path: Path, how: str) -> None:
    with opened(tmp_path) as keep:
        for number in range(25):
            keep.create(f"t{number}")
        cut_off(keep, 20)
    begun = msgspec.json.decode((tmp_path / "projections" / "rebuilding").read_bytes())
    path = tmp_path / "projections" / begun["generation"]
    changes = {
        "other log": (b"!identity", b"another"),
        "wrong": (b"registry/task/z", b"?"),
        "ahead": (b"!position", bytes(7) + b"\x63"),
    }
    if how == "other boot":
        (tmp_path / "projections" / "rebuilding").write_bytes(msgspec.json.encode(begun | {"boot_id": "x"}))
    elif how == "damaged":
        (path / "data.mdb").write_bytes(b"no page" * 2000)
    else:
        with lmdb.open(str(path), map_size=64 << 30) as env, env.begin(write=True) as txn:
            txn.put(*changes[how])
    with opened(tmp_path) as keep:
        rebuilt, told = told_by(keep)
        assert (rebuilt.same, rebuilt.position, told[-3:]) == (True, 25, [10, 20, 25])
        assert len(generations(tmp_path)) == 1
        keep.check()


@pytest.mark.usefixtures("batches")
def test_others_decide_and_open_while_a_rebuild_is_under_way(keep: Keep, tmp_path: Path) -> None:
    for number in range(25):
        keep.create(f"t{number}")

    def meanwhile(position: int) -> None:
        if position == 20:
            with worker("decide", tmp_path, 3, script=WORKER) as process:
                go(process)
                assert finish(process) == ["26", "27", "28"]
            within(30, lambda: keep.create("here"))()

    rebuilt = keep.store.rebuild(meanwhile)
    assert (rebuilt.same, rebuilt.position) == (True, 29)
    keep.check()
