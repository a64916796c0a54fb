"""The pool: slots are made, taken by tasks, and removed when they fit nobody; and whoever is killed at any step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task, pool, slot
from sandkeep.sandboxes.errors import NotARepository

from .support import container_of, containers, shell, stopped_at, types

pytestmark = pytest.mark.engine


def ask_for(keep: Keep, count: int) -> None:
    """Set how many slots there are to be."""
    file = keep.path / "keep.toml"
    file.write_text(file.read_text().partition("[sandboxes]")[0] + f"[sandboxes]\npool = {count}\n")


@pytest.fixture
def filled(keep: Keep) -> str:
    """`keep` has one slot, of this id."""
    ask_for(keep, 1)
    (line,) = pool.fill(keep)
    (name,) = slot.names(keep)
    assert line == f"slot {name}: started, 1 of 1"
    return name


def assert_agreement(keep: Keep) -> None:
    """Every container is a slot's or a task's, and every folder too."""
    keep.reconcile(again=True)
    slots = {name: slot.find(keep, name) for name in slot.names(keep)}
    believed = [task.container for task in keep.tasks(*TaskState) if task.container]
    assert sorted(containers(keep.id)) == sorted([*believed, *(each.container for each in slots.values() if each)])
    living = {task.id for task in keep.tasks()} | set(slots)
    for folder in (keep.path / "tasks", keep.path / "run" / "spool"):
        assert {path.name for path in folder.iterdir()} <= living
    assert keep.reconcile(again=True) == []


def test_none_unless_asked_for(keep: Keep) -> None:
    assert pool.fill(keep) == []
    assert containers(keep.id) == []


def test_a_task_takes_a_slot_and_finds_its_sandbox_running(keep: Keep, filled: str) -> None:
    (container,) = containers(keep.id)
    keep.reconcile(again=True)
    assert containers(keep.id) == [container]
    assert keep.tasks(*TaskState) == []
    task = keep.create_task("t")
    assert (task.id, task.state.state, task.state.container) == (filled, TaskState.CREATED, None)
    assert pool.fill(keep) != []  # another is made, and this one left to its task
    keep.reconcile(again=True)
    said: list[str] = []
    assert shell(task, "echo x >file; cat file; id -u", progress=said.append).startswith("x\n")
    assert (container_of(task), said) == (container, [])
    assert types(task.history())[:5] == [
        *("TaskCreated", "WorkspacePrepared", "SandboxRequested", "SandboxStarted", "CommandRequested")
    ]
    assert (task.workspace / "file").read_text() == "x\n"
    assert "state" in json.loads((task.folder / "memory" / "state.json").read_text())
    assert slot.find(keep, task.id) is None
    assert_agreement(keep)
    task.stop()
    assert shell(task, "cat file") == "x\n"
    task.complete()
    task.clean_up()
    assert_agreement(keep)


def test_a_slot_has_room_for_a_clone(keep: Keep, filled: str, source: Path) -> None:
    task = keep.create_task("t", source=source)
    assert task.id == filled
    (container,) = containers(keep.id)
    assert shell(task, "./run; git status --porcelain") == "ran\n"
    assert container_of(task) == container


def test_each_task_has_a_slot_of_its_own(keep: Keep) -> None:
    ask_for(keep, 2)
    assert len([*pool.fill(keep), *pool.fill(keep)]) == 2
    assert pool.fill(keep) == []
    slots = slot.names(keep)
    with ThreadPoolExecutor(4) as threads:
        tasks = list(threads.map(lambda number: keep.create_task(f"t{number}"), range(4)))
    tasks += [keep.create_task("t4"), keep.create_task("t5")]
    assert {task.id for task in tasks} > set(slots)
    assert len({task.id for task in tasks}) == 6
    for task in tasks:
        assert shell(task, "echo alive") == "alive\n"
    assert_agreement(keep)


def test_a_task_with_another_image_takes_none(keep: Keep, filled: str, task: Task) -> None:
    assert task.id == filled  # it was made from the base image
    ask_for(keep, 1)
    assert pool.fill(keep) != []
    (name,) = set(slot.names(keep))
    with pool.place(keep, "another:1") as fresh:
        assert fresh != name
    with pool.place(keep, task.state.image) as fitting:
        assert fitting == name
        with pool.place(keep, task.state.image) as fresh:  # that one is being taken
            assert fresh != name


def test_a_slot_has_the_limits_that_keep_toml_says(keep: Keep, filled: str) -> None:
    file = keep.path / "keep.toml"
    file.write_text(file.read_text() + '[limits]\nmemory = "300MiB"\n')
    assert pool.fill(keep)[0] == f"slot {filled}: removed"
    (container,) = containers(keep.id)
    task = keep.create_task("t")
    shell(task, "true")
    assert container_of(task) == container
    assert keep.resources(task.id).limits.memory_bytes == 300 << 20
    assert pool.fill(keep) != []
    small = keep.create_task("small", limits={"memory": "100MiB"})
    (waiting,) = set(containers(keep.id)) - {container}
    shell(small, "true")  # in one of its own
    assert container_of(small) != waiting
    assert keep.resources(small.id).use.promised == 100 << 20
    assert_agreement(keep)


def test_a_slot_that_is_too_many_old_or_dead_is_removed(keep: Keep, filled: str) -> None:
    found = slot.find(keep, filled)
    assert found is not None
    slot.write(keep, filled, msgspec.structs.replace(found, image_id="sha256:old"))
    removed, started = pool.fill(keep)
    assert removed == f"slot {filled}: removed"
    (name,) = slot.names(keep)
    assert started == f"slot {name}: started, 1 of 1"
    assert_agreement(keep)
    keep.engine.remove(containers(keep.id)[0])
    assert pool.fill(keep)[0] == f"slot {name}: removed"
    assert_agreement(keep)
    ask_for(keep, 0)
    assert len(pool.fill(keep)) == 1
    assert (slot.names(keep), containers(keep.id)) == ([], [])
    assert_agreement(keep)


def test_a_slot_whose_container_died_before_its_task_had_a_command_is_no_loss(keep: Keep, filled: str) -> None:
    task = keep.create_task("t")
    keep.engine.remove(containers(keep.id)[0])
    assert shell(task, "echo alive") == "alive\n"
    assert task.id == filled
    assert_agreement(keep)


@pytest.mark.parametrize(
    "other", [{"image_id": "sha256:old"}, {"limits": ev.Limits(1 << 30, 1, 1, 1)}, {"container": ""}]
)
def test_a_sandbox_that_is_not_what_its_task_would_have_is_replaced(
    keep: Keep, filled: str, other: dict[str, object]
) -> None:
    task = keep.create_task("t")
    (container,) = containers(keep.id)
    found = slot.find(keep, filled)
    assert found is not None
    slot.write(keep, filled, msgspec.structs.replace(found, **other))
    assert shell(task, "echo alive") == "alive\n"
    assert container_of(task) != container
    assert_agreement(keep)


@pytest.mark.parametrize("end", ["complete", "fail a clone"])
def test_a_taken_slot_that_is_never_used_goes_with_its_task(
    keep: Keep, filled: str, source: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    if end == "complete":
        task = keep.create_task("t")
        task.complete()
        assert containers(keep.id) == []
        task.clean_up()
    else:
        for path in (source / ".git" / "objects").rglob("*"):
            if path.is_file():
                path.unlink()
        with pytest.raises(NotARepository):
            keep.create_task("t", source=source)
    assert keep.task(filled).state.state is TaskState.CLEANED
    assert (containers(keep.id), slot.names(keep)) == ([], [])
    assert_agreement(keep)


STEPS = {
    "fill": ("after:slot.write", "before:engine.start", "after:engine.start", "after:slot.write#2"),
    "create": ("before:keep.decide", "after:keep.decide", "before:task._settle", "after:task._settle"),
    "execute": ("before:slot.adopt", "after:slot.adopt", "before:slot.drop", "after:slot.drop"),
}


@pytest.mark.parametrize(("action", "step"), [(action, step) for action, steps in STEPS.items() for step in steps])
def test_whoever_is_killed_at_whichever_step(keep: Keep, action: str, step: str) -> None:
    ask_for(keep, 1)
    if action != "fill":
        pool.fill(keep)
    arguments = [keep.create_task("t").id, "true"] if action == "execute" else []
    with stopped_at(step, action, keep.path, *arguments) as process:
        if action == "fill":
            assert pool.place(keep, "x").__enter__() not in slot.names(keep)
        process.kill()
        process.wait()
    keep.reconcile(again=True)
    pool.fill(keep)
    assert_agreement(keep)
    for task in keep.tasks():
        assert shell(keep.task(task.id), "echo alive") == "alive\n"
    assert shell(keep.create_task("another"), "echo alive") == "alive\n"
    ask_for(keep, 0)
    pool.fill(keep)
    assert_agreement(keep)


@pytest.fixture(autouse=True)
def emptied(keep: Keep) -> Iterator[None]:
    """No slot outlives a test."""
    yield
    ask_for(keep, 0)
    pool.fill(keep)
