"""Views of the past begin from snapshots, and are what a fold of the log gives whatever becomes of these."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import msgspec
import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import BadMoment, snapshots
from sandkeep.projections.generation import IDENTITY, POSITION, open_environment
from sandkeep.projections.registry import find
from sandkeep.projections.snapshots import Snapshots

from ..events.support import wait_until
from .support import Keep, created, tamper
from .support import keep as opened


@pytest.fixture
def spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots every ten records, as often as there is time to."""
    monkeypatch.setattr(snapshots, "SPACING", 10)
    monkeypatch.setattr(snapshots, "_SHARE", 1e9)


def kept(folder: Path) -> list[int]:
    root = folder / "projections" / "snapshots"
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal()) if root.exists() else []


def has(folder: Path, position: int) -> bool:
    return position in kept(folder)


def fill(keep: Keep, folder: Path, count: int) -> None:
    """Create tasks, and see that there is a snapshot whenever one is due."""
    for _ in range(count):
        head = keep.create(f"t{keep.log.head().position}").last
        if head % 10 == 0:
            wait_until(partial(has, folder, head))


def check_the_past(keep: Keep) -> None:
    for position in range(keep.log.head().position + 1):
        with keep.store.as_of(position) as past:
            assert keep.store.digest(past) == keep.store.digest(keep.store.refold(position))


@pytest.mark.usefixtures("spaced")
def test_snapshots_are_taken_as_the_log_grows_and_views_begin_from_them(keep: Keep, tmp_path: Path) -> None:
    fill(keep, tmp_path, 35)
    assert kept(tmp_path) == [10, 20, 30]
    check_the_past(keep)
    read: list[int] = []
    whole = keep.log.read

    def reading(after: int = 0, *, until: int | None = None) -> Iterator[object]:
        read.append(after)
        return whole(after, until=until)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(keep.log), "read", lambda log, after=0, until=None: reading(after, until=until))
        for position in (9, 10, 25, 34):
            with keep.store.as_of(position):
                pass
    assert read == [0, 10, 20, 30]


def cut(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:5000])


def flip(data: Path) -> None:
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def of_another_log(data: Path) -> None:
    with lmdb.open(str(data.parent), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(IDENTITY, b"another")
    digest(data)


def of_another_position(data: Path) -> None:
    with lmdb.open(str(data.parent), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(POSITION, (9).to_bytes(8, "big"))
    digest(data)


def digest(data: Path) -> None:
    """Make the snapshot's own description fit, so that only what it holds can tell that it does not."""
    file = data.with_name("snapshot.json")
    meta = msgspec.json.decode(file.read_bytes())
    meta["digest"] = snapshots._digest(data)
    file.write_bytes(msgspec.json.encode(meta))


@pytest.mark.usefixtures("spaced")
@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        of_another_log,
        of_another_position,
        Path.unlink,
        lambda data: data.with_name("snapshot.json").write_text("{"),
        lambda data: data.with_name("snapshot.json").unlink(),
        lambda data: shutil.rmtree(data.parent),
        lambda data: shutil.rmtree(data.parent.parent),
    ],
    ids=["cut", "bit", "other log", "other position", "no file", "half", "no description", "gone", "all gone"],
)
def test_a_snapshot_that_is_not_whole_is_not_used(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    with opened(tmp_path) as keep:
        fill(keep, tmp_path, 25)
    damage(tmp_path / "projections" / "snapshots" / "20" / "data.mdb")
    with opened(tmp_path) as keep:
        check_the_past(keep)
        assert 20 not in kept(tmp_path)


@pytest.mark.usefixtures("spaced")
def test_snapshots_outlive_a_boot_and_a_rebuild(tmp_path: Path) -> None:
    with opened(tmp_path, boot_id="one") as keep:
        fill(keep, tmp_path, 25)
    with opened(tmp_path, boot_id="two") as keep:
        assert keep.store.rebuild().same
        assert kept(tmp_path)[:2] == [10, 20]
        check_the_past(keep)


@pytest.mark.usefixtures("spaced")
def test_snapshots_of_a_state_that_was_wrong_are_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        fill(keep, tmp_path, 15)
    tamper(tmp_path, b"registry/task/z", b"?")
    with opened(tmp_path) as keep:
        fill(keep, tmp_path, 10)
        with keep.store.as_of(22) as past:
            assert past.get(b"registry/task/z") == b"?"
        assert not keep.store.rebuild().same
        assert kept(tmp_path) == []
        check_the_past(keep)


@pytest.mark.usefixtures("spaced")
def test_a_rebuild_takes_the_snapshots_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandkeep.projections.store.BATCH", 10)
    with opened(tmp_path) as keep:
        fill(keep, tmp_path, 45)
    shutil.rmtree(tmp_path / "projections")
    with opened(tmp_path) as keep:
        wait_until(lambda: kept(tmp_path) == [45])  # taken when the state was folded at once

        def patiently(position: int) -> None:
            wait_until(lambda: position % 10 != 0 or any(abs(found - position) < 10 for found in kept(tmp_path)))

        assert keep.store.rebuild(patiently).same
        assert len(kept(tmp_path)) >= 4
        check_the_past(keep)


@pytest.mark.parametrize(("most", "most_bytes"), [(4, 1 << 30), (99, 4 * 40_000)], ids=["number", "bytes"])
def test_snapshots_are_bounded_and_the_recent_past_stays_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, most_bytes: int
) -> None:
    monkeypatch.setattr(snapshots, "SPACING", 2)
    monkeypatch.setattr(snapshots, "MOST", most)
    monkeypatch.setattr(snapshots, "MOST_BYTES", most_bytes)
    env = open_environment(tmp_path / "state")
    taken = Snapshots(tmp_path / "projections" / "snapshots", b"identity")
    for position in range(2, 202, 2):
        with env.begin(write=True) as txn:
            txn.put(IDENTITY, b"identity")
            txn.put(POSITION, position.to_bytes(8, "big"))
            txn.put(b"filling", bytes(30_000))
        taken.take(env)
        positions = kept(tmp_path)
        assert positions[-1] == position
        assert 2 <= len(positions) <= 4 or position < 4
    taken.close()
    env.close()
    gaps = [after - before for before, after in itertools.pairwise([0, *positions])]
    assert gaps[0] == max(gaps) <= 110
    assert gaps[-1] == min(gaps) <= 40


def test_one_snapshot_is_taken_at_a_time_and_not_next_to_another(tmp_path: Path) -> None:
    env = open_environment(tmp_path / "state")
    with env.begin(write=True) as txn:
        txn.put(POSITION, (5).to_bytes(8, "big"))
    taken = Snapshots(tmp_path / "projections" / "snapshots", b"")
    threads = [threading.Thread(target=taken.take, args=(env,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with env.begin(write=True) as txn:
        txn.put(POSITION, (6).to_bytes(8, "big"))
    taken.take(env)
    taken.close()
    env.close()
    assert kept(tmp_path) == [5]


@pytest.mark.usefixtures("spaced")
def test_threads_view_the_past_while_others_decide(keep: Keep, tmp_path: Path) -> None:
    fill(keep, tmp_path, 25)
    found: list[bool] = []

    def view() -> None:
        for position in (5, 12, 22):
            with keep.store.as_of(position) as past:
                found.append(find(past, f"t{position - 1}") is not None and find(past, f"t{position}") is None)

    threads = [threading.Thread(target=view) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        keep.create(f"t{keep.log.head().position}")
    for thread in threads:
        thread.join()
    assert found == [True] * 12


@pytest.mark.parametrize("position", [-1, 3])
def test_what_the_log_has_not_come_to_cannot_be_viewed(keep: Keep, position: int) -> None:
    keep.log.append("task/a", [created("a"), ev.TaskFailed("r")], actor="me")
    with pytest.raises(BadMoment, match="the log has those up to 2"), keep.store.as_of(position):
        pass
