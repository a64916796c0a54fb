"""The state is at the head whenever it is read, and whatever is not fit for use is made anew from the log."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from sandkeep.events import Event, LmdbLog, Record
from sandkeep.events import catalogue as ev
from sandkeep.events.recovery import Mode, recover
from sandkeep.projections import MemoryState, ProjectionStore, ProjectionsUnavailable, Registry, State, StateView
from sandkeep.projections import generation as generation_module
from sandkeep.projections.registry import find, tasks

from ..events.support import finish, go, worker
from .support import PROJECTIONS, WORKER, Keep, created, generations
from .support import keep as opened


def generation(folder: Path) -> Path:
    """The folder of the generation in use."""
    current = msgspec.json.decode((folder / "projections" / "current").read_bytes(), type=dict[str, str])
    return folder / "projections" / current["generation"]


def stored_position(folder: Path) -> int:
    """How far the stored state has come, of projections that nobody has open."""
    with lmdb.open(str(generation(folder)), map_size=64 << 30) as env, env.begin() as txn:
        return int.from_bytes(txn.get(b"!position") or b"", "big")


def test_new_projections_are_empty(keep: Keep, tmp_path: Path) -> None:
    with keep.store.reading() as state:
        assert (list(tasks(state)), keep.store.position(state)) == ([], 0)
    assert (tmp_path / "projections").stat().st_mode & 0o777 == 0o700
    assert keep.check() == keep.store.digest(MemoryState())


def test_a_decision_is_seen_at_once(keep: Keep) -> None:
    for number in range(3):
        assert keep.create(f"t{number}").last == number + 1
        assert keep.find(f"t{number}") is not None
    assert keep.create("t0").last == 3
    with keep.store.reading() as state:
        assert keep.store.position(state) == 3
    keep.check()


def test_what_was_only_appended_is_seen_at_once(keep: Keep) -> None:
    keep.log.append("task/a", [created("a")], actor="me")
    assert keep.find("a") is not None
    keep.log.append("task/b", [created("b")], actor="me")
    assert keep.create("b").first == 3
    keep.check()


def test_a_refused_decision_leaves_no_trace(keep: Keep) -> None:
    def refuse(state: StateView) -> list[Event]:
        raise KeyError("refused")

    keep.create("a")
    before = keep.digest()
    with pytest.raises(KeyError):
        keep.log.decide("task/a", refuse, actor="me")
    assert keep.check() == before


def test_a_view_is_of_one_moment(keep: Keep) -> None:
    keep.create("a")
    with keep.store.reading() as state:
        keep.create("b")
        assert [task.id for task in tasks(state)] == ["a"]
    assert keep.find("b") is not None


def test_a_view_is_refused_after_its_end(keep: Keep) -> None:
    keep.create("a")
    with keep.store.reading() as state:
        pass
    with pytest.raises(ProjectionsUnavailable, match="cannot be read"):
        find(state, "a")
    with pytest.raises(ProjectionsUnavailable, match="cannot be read"):
        list(tasks(state))


def test_too_many_views_at_once_are_refused(keep: Keep) -> None:
    keep.create("a")
    with contextlib.ExitStack() as stack:
        for _ in range(1024):
            stack.enter_context(keep.store.reading())
        with pytest.raises(ProjectionsUnavailable, match="cannot be opened"):
            keep.digest()
    assert keep.create("b").last == 2
    keep.check()


def test_what_other_processes_decide_is_seen(keep: Keep, tmp_path: Path) -> None:
    keep.create("a")
    with worker("decide", tmp_path, 5, script=WORKER) as process:
        go(process)
        assert finish(process) == ["2", "3", "4", "5", "6"]
    assert keep.find("w4") is not None
    assert keep.create("w3").last == 6
    keep.check()


def test_threads_decide_and_read_at_once(keep: Keep) -> None:
    lags: list[int] = []

    def decide(name: str) -> None:
        for number in range(20):
            last = keep.create(f"{name}{number}").last
            with keep.store.reading() as state:
                lags.append(last - keep.store.position(state))

    threads = [threading.Thread(target=decide, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lags) == 80
    assert max(lags) <= 0
    keep.check()


def test_a_death_between_the_two_commits_is_caught_up(tmp_path: Path) -> None:
    with worker("die-between-commits", tmp_path, 3, script=WORKER) as process:
        go(process)
        assert process.wait(30) == -signal.SIGKILL
    before = generation(tmp_path)
    assert stored_position(tmp_path) == 3
    with opened(tmp_path) as keep:
        assert keep.log.head().position == 4
        assert keep.find("last") is not None
        keep.check()
        assert keep.create("last").last == 4
    assert generation(tmp_path) == before


def test_the_state_is_kept_from_one_opening_to_the_next(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        digest = keep.check()
    before = generation(tmp_path)
    with opened(tmp_path) as keep:
        assert keep.check() == digest
    assert (generation(tmp_path), stored_position(tmp_path)) == (before, 1)


def break_the_environment(folder: Path) -> None:
    for path in generation(folder).iterdir():
        path.write_bytes(b"no page" * 2000)


def name_a_folder_outside(folder: Path) -> None:
    shutil.copytree(generation(folder), folder / "outside")
    (folder / "projections" / "current").write_text('{"generation": "../outside", "boot_id": "boot"}')


def half_write_the_name(folder: Path) -> None:
    (folder / "projections" / "current").write_text('{"generation": "')


def put(key: bytes, value: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with lmdb.open(str(generation(folder)), map_size=64 << 30) as env, env.begin(write=True) as txn:
            txn.put(key, value)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder / "projections"),
        lambda folder: shutil.rmtree(generation(folder)),
        lambda folder: (folder / "projections" / "current").unlink(),
        lambda folder: (generation(folder) / "data.mdb").unlink(),
        lambda folder: os.truncate(generation(folder) / "data.mdb", 9000),
        break_the_environment,
        name_a_folder_outside,
        half_write_the_name,
        put(b"!position", (3).to_bytes(8, "big")),
        put(b"!identity", b"another"),
        put(b"!retired", b"1"),
    ],
    ids=["all", "folder", "name", "file", "cut", "garbage", "outside", "half a name", "ahead", "identity", "retired"],
)
def test_what_is_not_fit_for_use_is_made_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        keep.create("b")
        digest = keep.check()
    before = generation(tmp_path)
    damage(tmp_path)
    with opened(tmp_path) as keep:
        assert keep.check() == digest
    assert generation(tmp_path) != before
    assert generations(tmp_path) == [generation(tmp_path)]


def test_after_another_boot_the_state_is_made_anew(tmp_path: Path) -> None:
    with opened(tmp_path, boot_id="one") as keep:
        keep.create("a")
        digest = keep.check()
    before = generation(tmp_path)
    with opened(tmp_path, boot_id="two") as keep:
        assert keep.check() == digest
    assert generation(tmp_path) != before
    assert not before.exists()


class Counted:
    """A later version of the registry, that also counts."""

    name = "registry"
    version = 99

    def apply(self, state: State, record: Record) -> None:
        Registry().apply(state, record)
        state.put(b"registry/count", record.position.to_bytes(8, "big"))


def test_another_version_of_a_projection_is_folded_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        keep.create("b")
    before = generation(tmp_path)
    with opened(tmp_path, projections=[Counted(), PROJECTIONS[1]]) as keep, keep.store.reading() as state:
        assert state.get(b"registry/count") == (2).to_bytes(8, "big")
        assert len(list(tasks(state))) == 2
    assert generation(tmp_path) != before
    with opened(tmp_path) as keep:
        keep.check()


def test_a_state_that_is_ahead_of_its_log_is_folded_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        keep.log.snapshot(tmp_path / "earlier")
        keep.create("b")
    before = generation(tmp_path)
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "earlier").rename(tmp_path / "log")
    with opened(tmp_path) as keep:
        assert (keep.find("a") is None, keep.find("b") is None) == (False, True)
        keep.check()
    assert generation(tmp_path) != before


def test_the_state_of_a_log_that_was_rebuilt_is_folded_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
        keep.log.append("task/x", [ev.TaskFailed(reason="needle")], actor="me")
        keep.create("b")
    before = generation(tmp_path)
    data = tmp_path / "log" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"needle", b"noodle"))
    assert not recover(tmp_path, Mode.TRUNCATE_TAIL, actor="me").ok
    with contextlib.closing(LmdbLog[StateView](tmp_path / "log")) as log:
        for number in range(5):  # past the position that the state is of
            log.append("keep", [ev.TaskFailed(reason=f"{number}")], actor="me")
    with opened(tmp_path) as keep:
        assert (keep.find("a") is None, keep.find("b") is None) == (False, True)
        keep.check()
    assert generation(tmp_path) != before


def test_the_state_of_another_log_is_folded_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as keep:
        keep.create("a")
    shutil.rmtree(tmp_path / "log")
    with opened(tmp_path) as keep:
        keep.create("b")
        assert (keep.find("a") is None, keep.find("b") is None) == (True, False)
        keep.check()


def test_the_boot_is_the_one_the_kernel_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_once() -> Path:
        store = ProjectionStore(tmp_path / "projections", PROJECTIONS)
        with contextlib.closing(LmdbLog[StateView](tmp_path / "log", follower=store)) as log, contextlib.closing(store):
            store.open(log)
        return generation(tmp_path)

    def unknown(path: Path) -> str:
        raise FileNotFoundError(path)

    first = open_once()
    assert open_once() == first
    monkeypatch.setattr(Path, "read_text", unknown)
    assert len({first, open_once(), open_once()}) == 3


def test_closed_projections_refuse_everything(keep: Keep) -> None:
    keep.create("a")
    keep.store.close()
    keep.store.close()
    for call in (keep.digest, keep.store.rebuild, lambda: keep.create("b")):
        with pytest.raises(ProjectionsUnavailable, match="are closed"):
            call()
    assert keep.log.head().position == 1
    with pytest.raises(ProjectionsUnavailable, match="are closed"):
        ProjectionStore(Path("unused"), PROJECTIONS).refold(1)


def test_projections_that_cannot_be_written_store_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "MAP_SIZE", 48 << 10)
    with opened(tmp_path) as keep:
        keep.create("a")
        big = ev.TaskCreated(intent="i", title="x" * 60_000, source=None, image="base")
        keep.log.append("task/b", [big], actor="me")
        for call in (keep.digest, keep.store.rebuild, lambda: keep.create("c")):
            with pytest.raises(ProjectionsUnavailable, match="cannot be written"):
                call()
        assert keep.log.head().position == 2
    monkeypatch.undo()
    with opened(tmp_path) as keep:
        assert keep.create("c").last == 3
        keep.check()


def test_a_cache_that_fails_at_its_commit_does_not_take_back_the_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "MAP_SIZE", 64 << 10)
    with opened(tmp_path) as keep:
        acknowledged: list[int] = []
        with pytest.raises(ProjectionsUnavailable, match="cannot be written"):
            acknowledged.extend(keep.create(f"t{number}").last for number in range(1000))
        assert [record.position for record in keep.log.read()] == acknowledged
        assert len(acknowledged) > 10
    monkeypatch.undo()
    with opened(tmp_path) as keep:
        assert keep.find(f"t{len(acknowledged) - 1}") is not None
        keep.check()


@pytest.mark.parametrize("position", range(5), ids=str)
def test_the_past_can_be_asked_for(keep: Keep, position: int) -> None:
    for name in "abcd":
        keep.create(name)
    with keep.store.as_of(position) as past:
        assert [task.id for task in tasks(past)] == list("abcd")[:position]
        assert keep.store.digest(past) == keep.store.digest(keep.store.refold(position))
