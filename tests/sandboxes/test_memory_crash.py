"""A writer of a memory folder that dies at any step: readers are never told more than is there, and the next writer
makes the folder what the log makes of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, memory, page_file, pages

from ..events import strategies
from .folders import PAGES, add, contents, described, folder_of, from_nothing
from .support import stopped_at

CHANGING = {"write", "pwrite", "rename", "unlink", "ftruncate", "fchmod", "fsync", "fdatasync"}
EVENTS = (ev.DecisionRecorded("x", "y" * 500), ev.SandboxStarted("i2", "c"), ev.DecisionRecorded("z"))


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """The module `os`, until the call that changes something for the `last` time: from the next on, nothing is done any
    more, as if the process had been killed. Of a write that is cut off, half is done. With `error` that one call raises
    it, and all goes on."""

    def __init__(self, last: int, error: OSError | None = None) -> None:
        self.left = last
        self.error = error

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING and name != "open":
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.left -= 1
            if self.left < 0:
                if name in ("write", "pwrite") and self.left == -1:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
                if self.error is None:
                    raise Killed
                if self.left == -1:
                    raise self.error
            return real(*arguments, **options)

        return call


def dies(last: int, work: Callable[[], object], error: OSError | None = None) -> bool:
    """Do `work` in a process that dies after `last` changes, or meets `error` there; whether it did."""
    with pytest.MonkeyPatch.context() as patched:
        dying = Dying(last, error)
        patched.setattr(memory, "os", dying)
        patched.setattr(page_file, "os", dying)
        try:
            work()
        except (Killed, OSError):
            assert dying.left < 0
            return True
    return False


def check_for_readers(folder: Path) -> None:
    """state.json is whole, if it is there, and the other pages hold what it says."""
    if not (folder / "state.json").exists():
        return
    page = (folder / "state.json").read_bytes()
    assert pages.claimed(page) is not None
    document = json.loads(page)
    lines = (folder / "log.jsonl").read_bytes()[: document["log.jsonl"]["bytes"]].splitlines(keepends=True)
    digest = ""
    for line in lines:
        digest = blake3(digest.encode() + line).hexdigest()
    assert document["log.jsonl"]["digest"] == digest
    assert len((folder / "decisions.md").read_bytes()) >= document["decisions.md"]["bytes"]


def nothing(keep: Keep, task: Task) -> None:
    """The folder is empty."""
    for path in folder_of(task).iterdir():
        path.unlink()
    (task.folder / "memory.mark").unlink()


def behind(keep: Keep, task: Task) -> None:
    """The log has more."""
    add(keep, task.id, *EVENTS)


def torn(keep: Keep, task: Task) -> None:
    """The log has more, and another writer has died while it wrote that."""
    add(keep, task.id, *EVENTS)
    assert dies(0, lambda: memory.refresh(keep, task.id))


def left(keep: Keep, task: Task) -> None:
    """The log has more, and another writer has died before it gave a page its name."""
    add(keep, task.id, *EVENTS)
    assert dies(6, lambda: memory.refresh(keep, task.id))


SITUATIONS = (nothing, behind, torn, left)


@pytest.mark.parametrize("rebuilding", [False, True], ids=["refresh", "rebuild"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_a_writer_may_die_at_any_step(
    shared_keep: Keep, situation: Callable[[Keep, Task], None], rebuilding: bool
) -> None:
    keep, steps = shared_keep, 0
    while True:
        task = described(keep, secrets.token_hex(6))
        memory.refresh(keep, task.id)
        situation(keep, task)
        work = memory.rebuild if rebuilding else memory.refresh
        if not dies(steps, partial(work, keep, task.id)):
            break
        check_for_readers(folder_of(task))
        done = memory.refresh(keep, task.id)
        assert done is not None
        assert done.damage == ()
        made = contents(folder_of(task))
        assert set(made) == PAGES
        assert made == from_nothing(keep, task)
        steps += 1
    assert steps > 4


@pytest.mark.parametrize("name", sorted(PAGES - {"plan.md"}))
def test_a_writer_may_die_while_it_makes_damage_good(shared_keep: Keep, name: str) -> None:
    keep, steps = shared_keep, 0
    while True:
        task = described(keep, secrets.token_hex(6))
        memory.refresh(keep, task.id)
        (folder_of(task) / name).write_text("edited")
        if not dies(steps, partial(memory.refresh, keep, task.id)):
            break
        done = memory.refresh(keep, task.id)
        assert done is not None
        assert contents(folder_of(task)) == from_nothing(keep, task)
        (first, *_) = [record.event for record in task.history() if isinstance(record.event, ev.MemoryRepaired)]
        assert first.damage == (f"{name} is not what was written",)
        assert first.quarantine is not None
        assert (keep.path / "quarantine" / first.quarantine / name).read_text() == "edited"
        steps += 1
    assert steps > 8


@pytest.mark.parametrize("rebuilding", [False, True], ids=["refresh", "rebuild"])
def test_what_a_page_holds_is_durable_before_it_is_relied_upon(shared_keep: Keep, rebuilding: bool) -> None:
    """For a power loss: files are synced before they get their names, and before state.json speaks of them."""
    task = described(shared_keep, secrets.token_hex(6))
    memory.refresh(shared_keep, task.id)
    behind(shared_keep, task)
    unsynced: set[int] = set()
    named: list[str] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            real = getattr(os, name)

            def call(*arguments: Any, **options: Any) -> Any:
                if name == "write":
                    unsynced.add(arguments[0])
                elif name == "fdatasync":
                    unsynced.remove(arguments[0])
                elif name == "rename":
                    assert not unsynced
                    named.append(arguments[1])
                return real(*arguments, **options)

            return call if callable(real) and not isinstance(real, type) else real

    with pytest.MonkeyPatch.context() as patched:
        for module in (memory, page_file):
            patched.setattr(module, "os", Watching())
        (memory.rebuild if rebuilding else memory.refresh)(shared_keep, task.id)
    assert named == ["log.jsonl", "decisions.md", "plan.md", "state.json"][0 if rebuilding else 2 :]
    assert not unsynced


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_an_error_at_any_step_is_told_and_made_good_the_next_time(shared_keep: Keep, number: int) -> None:
    keep, steps, failed = shared_keep, 0, True
    while failed:
        task = described(keep, secrets.token_hex(6))
        memory.refresh(keep, task.id)
        behind(keep, task)
        failed = dies(steps, partial(memory.refresh, keep, task.id), OSError(number, "no"))
        check_for_readers(folder_of(task))
        assert set(contents(folder_of(task))) == PAGES
        done = memory.refresh(keep, task.id)
        assert done is not None
        assert done.damage == ()
        assert contents(folder_of(task)) == from_nothing(keep, task)
        steps += 1
    assert steps > 8


def test_an_edited_plan_outlives_every_death(shared_keep: Keep) -> None:
    keep, steps, died = shared_keep, 0, True
    while died:
        task = described(keep, secrets.token_hex(6))
        memory.refresh(keep, task.id)
        (folder_of(task) / "plan.md").write_text("mine")
        add(keep, task.id, *EVENTS)
        died = dies(steps, partial(memory.refresh, keep, task.id))
        memory.refresh(keep, task.id)
        assert contents(folder_of(task)) == from_nothing(keep, task) | {"plan.md": b"mine"}
        steps += 1
    assert steps > 4


@settings(max_examples=30)
@given(st.lists(st.tuples(strategies.events(), st.none() | st.integers(0, 20), st.booleans()), max_size=10))
def test_after_any_history_of_deaths_the_folder_is_what_the_log_makes_of_it(
    shared_keep: Keep, history: list[tuple[Event, int | None, bool]]
) -> None:
    task = described(shared_keep, secrets.token_hex(6))
    for event, last, rebuilding in history:
        add(shared_keep, task.id, event)
        if last is not None:
            work = memory.rebuild if rebuilding else memory.refresh
            dies(last, partial(work, shared_keep, task.id))
            check_for_readers(folder_of(task))
    done = memory.refresh(shared_keep, task.id)
    assert done is not None
    assert done.damage == ()
    assert contents(folder_of(task)) == from_nothing(shared_keep, task)


@pytest.mark.parametrize(
    "step",
    ["before:page.finish", "after:page.finish", "before:page.finish#3", "after:page.finish#4", "before:memory._encode"],
)
def test_a_killed_process_leaves_a_folder_that_the_next_makes_good(keep: Keep, step: str) -> None:
    task = described(keep)
    memory.refresh(keep, task.id)
    with stopped_at(step, "decide", keep.path, task.id):
        check_for_readers(folder_of(task))
    check_for_readers(folder_of(task))
    done = memory.refresh(keep, task.id)
    assert done is not None
    assert (done.revision, done.damage) == (3, ())
    assert contents(folder_of(task)) == from_nothing(keep, task)
    assert b"cut short" in (folder_of(task) / "decisions.md").read_bytes()
