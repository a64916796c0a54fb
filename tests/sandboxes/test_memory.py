"""The memory folder without an engine: it follows the log, whatever happens to it, and an edited plan is nobody's but
its editor's."""

from __future__ import annotations

import json
import os
import secrets
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, memory, pages
from sandkeep.sandboxes.errors import MemoryUnavailable

from ..events import strategies
from .folders import PAGES, add, contents, described, folder_of, from_nothing
from .support import run_script

DECISION = ev.DecisionRecorded("x")
RUN = (
    ev.CommandRequested("i2", ("true",), "/workspace", (), 1),
    ev.CommandExecuted("i2", 0, 1, False, ev.Output(0, b""), ev.Output(0, b"")),
)


@pytest.fixture
def task(keep: Keep) -> Task:
    """A task whose memory folder is up to date."""
    made = described(keep)
    refresh(keep, made)
    return made


@pytest.fixture
def folder(task: Task) -> Path:
    return folder_of(task)


def refresh(keep: Keep, task: Task) -> memory.Refreshed:
    done = memory.refresh(keep, task.id)
    assert done is not None
    return done


def repairs(task: Task) -> list[ev.MemoryRepaired]:
    return [record.event for record in task.history() if isinstance(record.event, ev.MemoryRepaired)]


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it fails to compare everything with the log."""

    def judge(self: object, marked: bool) -> None:
        raise AssertionError("everything was read again")

    monkeypatch.setattr(memory._Folder, "judge", judge)


# ---- following the log


def test_the_folder_holds_the_pages_for_everybody_to_read_and_nothing_else(task: Task, folder: Path) -> None:
    assert set(contents(folder)) == PAGES
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert json.loads((folder / "state.json").read_bytes())["revision"] == 2


def test_it_follows_the_log_without_reading_all_of_it(
    keep: Keep, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "log.jsonl").stat().st_ino
    for revision, event in enumerate((*RUN, DECISION), 3):
        add(keep, task.id, event)
        with monkeypatch.context() as patched:
            unread(patched)
            assert refresh(keep, task) == memory.Refreshed(task.id, revision, keep.head().position)
        assert contents(folder) == from_nothing(keep, task)
    assert (folder / "log.jsonl").stat().st_ino == before
    assert b"## 1. x" in (folder / "decisions.md").read_bytes()


def test_nothing_is_written_when_nothing_is_new(keep: Keep, task: Task, folder: Path) -> None:
    before = {path.name: path.stat() for path in folder.iterdir()}
    refresh(keep, task)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == {
        name: found.st_mtime_ns for name, found in before.items()
    }


def test_what_is_done_in_a_task_is_in_its_folder(keep: Keep, task: Task, folder: Path) -> None:
    made = task.record_decision("Use LMDB")
    assert json.loads((folder / "state.json").read_bytes())["position"] == made.position
    assert contents(folder) == from_nothing(keep, task)


def test_another_keep_on_the_same_folder_goes_on_from_there(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep.close()
    with Keep.open(keep.path) as again:
        unread(monkeypatch)
        add(again, task.id, DECISION)
        assert refresh(again, task).revision == 3
        monkeypatch.undo()
        assert contents(folder_of(task)) == from_nothing(again, task)


def test_a_subscription_keeps_all_folders_up_to_date(keep: Keep, task: Task) -> None:
    other = described(keep, "f" * 12)
    add(keep, "0" * 12, ev.TaskCreated("i", "without a folder", None, "image"))
    follow, seen = memory.follow(keep), threading.Event()
    last = keep.head().position

    def handle(record: Record) -> None:
        follow(record)
        if record.position == last:
            seen.set()

    subscription = keep.subscription("memory", handle)
    subscription.start()
    assert seen.wait(30)
    assert subscription.stop(30)
    assert subscription.failure is None
    for each in (task, other):
        assert contents(folder_of(each)) == from_nothing(keep, each)


def test_threads_of_many_follow_at_once(keep: Keep, task: Task, folder: Path) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                task.record_decision("x")
                refresh(keep, task)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert repairs(task) == []
    assert json.loads((folder / "state.json").read_bytes())["stats"]["decisions"] == 40
    assert contents(folder) == from_nothing(keep, task)


def test_processes_of_many_follow_at_once(keep: Keep, task: Task, folder: Path) -> None:
    def decide(number: int) -> int:
        return run_script("record-decision", task.id, f"decision {number}", "--keep", os.fspath(keep.path)).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decide, range(6))) == [0] * 6
    assert sorted(each.text for each in task.decisions()) == [f"decision {number}" for number in range(6)]
    assert repairs(task) == []
    assert refresh(keep, task).revision == 8
    assert contents(folder) == from_nothing(keep, task)


def test_a_task_without_a_folder_has_no_memory(keep: Keep) -> None:
    add(keep, "0" * 12, ev.TaskCreated("i", "t", None, "image"))
    assert memory.refresh(keep, "0" * 12) is None
    assert memory.check(keep, "0" * 12) == ()
    memory.trail(keep, "0" * 12)
    assert not (keep.path / "tasks").exists()
    with pytest.raises(MemoryUnavailable, match="has no memory folder"):
        keep.task("0" * 12).rebuild_memory()


def test_whoever_waits_for_a_folder_sees_that_it_was_removed(keep: Keep, task: Task, folder: Path) -> None:
    found: list[object] = ["nothing yet"]
    with memory.closed(task.folder):
        waiting = threading.Thread(target=lambda: found.append(memory.refresh(keep, task.id)))
        waiting.start()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    waiting.join()
    assert found[1:] == [None]
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_holds_nothing_up(
    keep: Keep, task: Task, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rename(folder.with_name("away"))
    folder.symlink_to("away")
    assert task.record_decision("x").number == 1
    assert "is out of date" in caplog.text
    assert b"## 1." not in (folder / "decisions.md").read_bytes()
    with pytest.raises(MemoryUnavailable, match="cannot be written"):
        task.rebuild_memory()
    assert memory.check(keep, task.id) == ("the folder cannot be read: Not a directory",)


# ---- damage


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replaced_by_a_link_to_itself(path: Path) -> None:
    moved = path.rename(path.parent.parent / path.name)
    path.symlink_to(moved)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("x")


def replaced_by_a_socket(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o600)  # to bind one, its path would have to be short


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forged(path: Path) -> None:
    """A page that has a digest of its own, or looks like one of ours, and says something else."""
    data = path.read_bytes().replace(b"a title", b"another").replace(b"0123456789ab", b"ba9876543210")
    if path.name == "state.json":
        head = data[: data.rindex(b'"digest": "') + len(b'"digest": "')]
        data = head + blake3(head + b'"\n}\n').hexdigest().encode() + b'"\n}\n'
        assert pages.claimed(data) is not None
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (lambda path: path.write_text("edited"), "is not what was written"),
    "flipped": (flipped, "is not what was written"),
    "forged": (forged, "is not what was written"),
    "emptied": (lambda path: path.write_bytes(b""), "is cut short"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "is cut short"),
    "longer": (lambda path: path.open("ab").write(b"x\n"), "is not what was written"),
    "link": (replaced_by_a_link, "is not what was written"),
    "link to the same": (replaced_by_a_link_to_itself, "is not what was written"),
    "folder": (replaced_by_a_folder, "is not what was written"),
    "socket": (replaced_by_a_socket, "is not what was written"),
    "pipe": (replaced_by_a_pipe, "is not what was written"),
    "removed": (Path.unlink, "is gone"),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", sorted(PAGES - {"plan.md"}))
def test_damage_is_found_set_aside_made_good_and_reported(
    keep: Keep, task: Task, folder: Path, name: str, how: str
) -> None:
    damage, words = DAMAGE[how]
    if name == "state.json" and words == "is cut short":
        words = "is not what was written"
    damage(folder / name)
    there = os.lstat(folder / name).st_ino if how != "removed" else None
    assert memory.check(keep, task.id) == (f"{name} {words}",)
    assert repairs(task) == []
    done = refresh(keep, task)
    assert done.damage == (f"{name} {words}",)
    assert repairs(task) == [ev.MemoryRepaired(done.damage, done.quarantine)]
    if done.quarantine is None:
        assert how == "removed"
    else:
        assert os.lstat(keep.path / "quarantine" / done.quarantine / name).st_ino == there
    assert contents(folder) == from_nothing(keep, task)
    assert json.loads((folder / "log.jsonl").read_bytes().splitlines()[-1])["type"] == "MemoryRepaired"
    assert refresh(keep, task).damage == memory.check(keep, task.id) == ()


def test_a_page_that_is_what_was_written_is_not_damaged_by_being_touched(keep: Keep, task: Task, folder: Path) -> None:
    for path in folder.iterdir():
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    assert refresh(keep, task).damage == ()
    assert repairs(task) == []


def test_all_damage_is_told_at_once(keep: Keep, task: Task, folder: Path) -> None:
    for name in ("state.json", "log.jsonl", "decisions.md"):
        (folder / name).write_text("x")
    done = task.rebuild_memory()
    assert [line.split()[0] for line in done.damage] == ["state.json", "log.jsonl", "decisions.md"]
    assert contents(folder) == from_nothing(keep, task)


def test_a_change_that_the_files_do_not_show_is_found_by_check_and_rebuild(
    keep: Keep, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "log.jsonl"
    flipped(path)
    monkeypatch.setattr(memory._Folder, "_fits", lambda self, mark: True)
    assert refresh(keep, task).damage == ()
    assert memory.check(keep, task.id) == ("log.jsonl is not what was written",)
    assert task.rebuild_memory().damage == ("log.jsonl is not what was written",)
    assert contents(folder) == from_nothing(keep, task)


def test_a_rebuild_makes_every_page_anew(keep: Keep, task: Task, folder: Path) -> None:
    add(keep, task.id, DECISION)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert task.rebuild_memory() == memory.Refreshed(task.id, 3, keep.head().position)
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert all(before[name] != after[name] for name in PAGES)
    assert contents(folder) == from_nothing(keep, task)


def test_pages_of_another_format_are_made_anew_and_are_no_damage(
    keep: Keep, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "FORMAT", pages.FORMAT + 1)
    monkeypatch.setattr(pages, "_heading", lambda task: b"# Other\n")
    assert refresh(keep, task).damage == ()
    assert (folder / "decisions.md").read_bytes() == b"# Other\n"
    assert contents(folder) == from_nothing(keep, task)


@pytest.mark.parametrize("kept", [0, 10, 40, 48, -1], ids=lambda kept: f"{kept} bytes")
def test_a_mark_that_is_cut_short_is_no_damage(keep: Keep, task: Task, folder: Path, kept: int) -> None:
    mark = task.folder / "memory.mark"
    mark.write_bytes(mark.read_bytes()[:kept])
    add(keep, task.id, DECISION)
    assert refresh(keep, task).damage == ()
    assert contents(folder) == from_nothing(keep, task)


def test_a_mark_that_is_damaged_is_not_believed(keep: Keep, task: Task, folder: Path) -> None:
    mark = task.folder / "memory.mark"
    stored = mark.read_bytes()
    mark.write_bytes(stored.replace(b"a title", b"another"))
    assert mark.read_bytes() != stored
    add(keep, task.id, DECISION)
    assert refresh(keep, task).damage == ()
    assert contents(folder) == from_nothing(keep, task)


def test_a_mark_of_another_boot_is_not_believed(
    keep: Keep, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "this_boot", lambda: "another")
    judged: list[bool] = []
    judge = memory._Folder.judge

    def told(self: memory._Folder, marked: bool) -> memory._Judged:
        judged.append(marked)
        return judge(self, marked)

    monkeypatch.setattr(memory._Folder, "judge", told)
    assert refresh(keep, task).damage == ()
    assert judged == [False]
    refresh(keep, task)
    assert judged == [False]


# ---- the plan


def test_the_plan_follows_the_task_until_it_is_edited(keep: Keep, task: Task, folder: Path) -> None:
    add(keep, task.id, DECISION)
    refresh(keep, task)
    assert "- x\n" in (folder / "plan.md").read_text()
    (folder / "plan.md").write_text("mine")
    add(keep, task.id, ev.DecisionRecorded("y"))
    assert refresh(keep, task).damage == ()
    assert memory.check(keep, task.id) == ()
    assert task.rebuild_memory().damage == ()
    assert (folder / "plan.md").read_text() == "mine"
    assert contents(folder) == from_nothing(keep, task) | {"plan.md": b"mine"}


def test_an_edited_plan_does_not_make_everything_be_read_again(
    keep: Keep, task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "plan.md").write_text("mine")
    refresh(keep, task)
    unread(monkeypatch)
    (folder / "plan.md").write_text("mine again")
    add(keep, task.id, DECISION)
    refresh(keep, task)
    assert (folder / "plan.md").read_text() == "mine again"


@pytest.mark.parametrize("edited", [False, True])
def test_a_plan_that_is_removed_is_made_again(keep: Keep, task: Task, folder: Path, edited: bool) -> None:
    if edited:
        (folder / "plan.md").write_text("mine")
        refresh(keep, task)
    (folder / "plan.md").unlink()
    assert refresh(keep, task).damage == ()
    assert contents(folder) == from_nothing(keep, task)


@pytest.mark.parametrize("replace", [replaced_by_a_link, replaced_by_a_folder, replaced_by_a_pipe])
def test_a_plan_that_is_no_file_is_left_alone(
    keep: Keep, task: Task, folder: Path, replace: Callable[[Path], None]
) -> None:
    replace(folder / "plan.md")
    before = os.lstat(folder / "plan.md")
    add(keep, task.id, DECISION)
    assert refresh(keep, task).damage == ()
    assert os.lstat(folder / "plan.md").st_ino == before.st_ino
    assert repairs(task) == []


# ---- any history


@settings(max_examples=25)
@given(st.lists(st.tuples(strategies.events(), st.sampled_from(["later", "now", "anew"])), max_size=12))
def test_after_any_history_the_folder_is_what_the_log_makes_of_it(
    shared_keep: Keep, history: list[tuple[Event, str]]
) -> None:
    task = described(shared_keep, secrets.token_hex(6))
    for event, when in history:
        add(shared_keep, task.id, event)
        if when == "now":
            refresh(shared_keep, task)
        elif when == "anew":
            task.rebuild_memory()
    assert refresh(shared_keep, task).revision == len(history) + 2
    assert contents(folder_of(task)) == from_nothing(shared_keep, task)
    assert repairs(task) == [event for event, _ in history if isinstance(event, ev.MemoryRepaired)]
    assert memory.check(shared_keep, task.id) == ()
